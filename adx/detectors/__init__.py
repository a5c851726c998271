"""The menu of detectors: whether a suspect model was trained on text that carries a mark."""
