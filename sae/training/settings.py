"""Settings of the node `trainer`: how the training runs on this machine."""

from typing import Literal

from sae.settings import Settings, setting


class TrainerSettings(Settings):
    """Settings of speed, memory and logging, which do not decide what dictionary is sought."""

    where = "trainer."

    batch_size: int = setting(512, ge=1, help="vectors per step, of all processes together")
    precision: Literal["auto", "32-true", "bf16-mixed"] = setting(
        "auto", help="auto: bf16-mixed where bfloat16 is at least 1.3 times as fast"
    )
    kernels: Literal["auto", "int8", "dense", "sparse"] = setting(
        "auto", help="products of codes; auto: what is faster; int8: latents selected by bytes"
    )
    accelerator: str = setting("auto", help="cpu, gpu, mps, …")
    devices: int = setting(1, ge=1, help="processes per node")
    num_nodes: int = setting(1, ge=1, help="nodes")
    gradient_clip: float | None = setting(
        None, ge=0, help="norm; 0: none; null: penalised SAEs get one norm in all steps of a "
        "short run"
    )  # fmt: skip
    log_every_steps: int = setting(50, ge=1, help="steps between two lines of metrics")
    validations: int = setting(3, ge=0, help="of held-out metrics during training")
    checkpoint_every_steps: int = setting(1000, ge=1, help="steps between two checkpoints")

    @property
    def processes(self) -> int:
        """Processes that train together, on all nodes."""
        return self.devices * self.num_nodes
