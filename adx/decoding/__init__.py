"""Prompts to completions: teacher and proxies decode together, under a defence."""
