"""One optimiser step of a dictionary and what surrounds it.

module.py       the LightningModule
optimized.py    its optimiser: rates, norm of the gradients
resampling.py   when dead latents start again, and what counts as dead
revival.py      which inputs they get, and what is set from these
ranks.py        what several training processes tell each other
schedules.py    warm-ups, decay, spans in tokens or shares of the run
optimizers.py   Adam, and Adam as the authors ran it
from_config.py  from plain configuration to a module
"""
