"""One contender's process: TRL's SFTTrainer on the same model and data. Started by `sft.py`.

The trainer takes the text and makes ids and labels itself. Logging, evaluation and saving are off;
steps are counted where the trainer hands a batch to its own step.
"""

from typing import Any

from benchmarks.measure import Memory, Outcome, Request, Step, now, read_request
from benchmarks.workload import LONGEST, Workload


def make_settings(request: Request, workload: Workload) -> Any:
    """TRL's configuration: the work of the workload, nothing beside it, and the contender's own
    settings.
    """
    from trl import SFTConfig

    settings: dict[str, Any] = {
        "output_dir": str(request.scratch / "trl"),
        "num_train_epochs": 1,
        "max_steps": request.max_steps or -1,
        "per_device_train_batch_size": workload.batch,
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "max_length": LONGEST,
        "completion_only_loss": True,
        "activation_checkpointing": False,
        "bf16": request.device == "cuda",
        "use_cpu": request.device != "cuda",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": request.device == "cuda",
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
    }
    own = {name: value for name, value in request.settings.items() if name != "weights"}
    return SFTConfig(**{**settings, **own})


def make_trainer(request: Request, workload: Workload, seen: list[dict[str, Any]]) -> Any:
    """The trainer; it adds to `seen` what every one of its forwards is given."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTTrainer

    class CountingTrainer(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **keywords: Any) -> Any:
            counts = {
                "samples": len(inputs["input_ids"]),
                "tokens": inputs["attention_mask"].sum(),
                "trained_tokens": (inputs["labels"][:, 1:] != -100).sum(),
                "step": self.state.global_step,
            }
            loss = super().training_step(model, inputs, *args, **keywords)
            seen.append({**counts, "loss": loss})
            return loss

    model = AutoModelForCausalLM.from_pretrained(
        str(request.folder / "model"),
        dtype=getattr(torch, request.settings.get("weights", "float32")),
    )
    data = str(request.folder / "data.jsonl")
    return CountingTrainer(
        model=model,
        args=make_settings(request, workload),
        train_dataset=load_dataset("json", data_files=data, split="train"),
        processing_class=AutoTokenizer.from_pretrained(str(request.folder / "model")),
        peft_config=LoraConfig(
            r=workload.rank,
            lora_alpha=workload.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def add_clock(trainer: Any, cuda: bool) -> list[float]:
    """The moments when training began and when each step ended; filled while the trainer works."""
    import torch
    from transformers import TrainerCallback

    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **keywords: Any) -> None:
            moments.append(now())

        def on_step_end(self, *args: Any, **keywords: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            moments.append(now())

    trainer.add_callback(Clock())
    return moments


def join_steps(moments: list[float], seen: list[dict[str, Any]]) -> list[Step]:
    """Steps from the clock and from what the forwards of each one were given."""
    steps = []
    for n in range(len(moments) - 1):
        mine = [part for part in seen if part["step"] == n]
        sums = {
            name: sum(int(part[name]) for part in mine)
            for name in ("samples", "tokens", "trained_tokens")
        }
        loss = sum(float(part["loss"]) for part in mine)
        steps.append(Step(seconds=moments[n + 1] - moments[n], loss=loss, **sums))
    return steps


def main() -> None:
    """Do what the request says and leave `outcome.json` beside it."""
    request = read_request()
    workload = Workload.read(request.folder)
    import torch
    from datasets import load_dataset  # noqa: F401  # imported before the floor is taken
    from peft import LoraConfig  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    torch.set_num_threads(request.threads)
    trainer_at = now()
    memory = Memory(request.device)
    seen: list[dict[str, Any]] = []
    trainer = make_trainer(request, workload, seen)
    moments = add_clock(trainer, request.device == "cuda")
    trainer.train()
    steps = join_steps(moments, seen)
    Outcome(
        contender=request.contender,
        round=request.round,
        to_trainer_s=trainer_at - request.started,
        to_first_step_s=moments[1] - request.started,
        pass_s=moments[-1] - moments[0],
        floor_bytes=memory.floor,
        peak_bytes=memory.look(),
        note=f"weights {trainer.model.dtype}, {len(seen)} forwards",
        steps=steps,
    ).write(request.scratch / "outcome.json")


if __name__ == "__main__":
    main()
