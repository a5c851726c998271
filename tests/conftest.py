"""Eight CPU devices in every test process, before a backend starts."""

import jax

jax.config.update('jax_num_cpu_devices', 8)
