"""One contender's process: TRL's trainer of the method on the same model and data. Started by
`harness.py`.

The trainer takes the text and makes ids and masks itself. Logging, evaluation and saving are off;
steps are counted where the trainer hands a batch to its loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import Memory, Outcome, Request, Step, now, read_request
from benchmarks.reward import even
from benchmarks.workload import LONGEST, LONGEST_SAMPLED, NUM_COMPLETIONS, Workload

Counts = dict[str, Any]


@dataclass
class Seen:
    """What is noted while the trainer works.

    batches: of every forward with a loss, what it was given. moments: when training began and when
    each step ended. before_s: seconds of the references computed before.
    """

    batches: list[Counts] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    before_s: float = 0.0


def shared_settings(request: Request, workload: Workload) -> dict[str, Any]:
    """The work of the workload, nothing beside it, and the contender's own settings."""
    settings: dict[str, Any] = {
        "output_dir": str(request.scratch / "trl"),
        "num_train_epochs": 1,
        "max_steps": request.max_steps or -1,
        "per_device_train_batch_size": workload.batch,
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
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
    return {**settings, **own}


def shared_parts(request: Request, workload: Workload) -> dict[str, Any]:
    """Model, data, tokenizer and adapter."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = str(request.folder / "data.jsonl")
    return {
        "model": AutoModelForCausalLM.from_pretrained(
            str(request.folder / "model"),
            dtype=getattr(torch, request.settings.get("weights", "float32")),
        ),
        "train_dataset": load_dataset("json", data_files=data, split="train"),
        "processing_class": AutoTokenizer.from_pretrained(str(request.folder / "model")),
        "peft_config": LoraConfig(
            r=workload.rank,
            lora_alpha=workload.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    }


def counting(trainer: type, count: Callable[[Any], Counts], seen: Seen) -> Any:
    """The trainer's class, which notes what its loss is given and how long references take."""

    class Counting(trainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **keywords: Any) -> Any:
            loss = super().training_step(*args, **keywords)
            seen.batches[-1]["loss"] = loss
            return loss

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **keywords: Any) -> Any:
            seen.batches.append({**count(inputs), "step": self.state.global_step})
            return super().compute_loss(model, inputs, *args, **keywords)

        def _precompute_ref_logps(self, *args: Any, **keywords: Any) -> Any:
            began = now()
            found = super()._precompute_ref_logps(*args, **keywords)
            seen.before_s += now() - began
            return found

    return Counting


def make_sft(request: Request, workload: Workload, seen: Seen) -> Any:
    """Supervised fine-tuning, the loss on completions."""
    from trl import SFTConfig, SFTTrainer

    def count(inputs: Any) -> Counts:
        return {
            "samples": len(inputs["input_ids"]),
            "tokens": inputs["attention_mask"].sum(),
            "trained_tokens": (inputs["labels"][:, 1:] != -100).sum(),
        }

    settings = {"max_length": LONGEST, "completion_only_loss": True}
    return counting(SFTTrainer, count, seen)(
        args=SFTConfig(**{**shared_settings(request, workload), **settings}),
        **shared_parts(request, workload),
    )


def make_dpo(request: Request, workload: Workload, seen: Seen) -> Any:
    """Pairs, with the sigmoid loss."""
    from trl import DPOConfig, DPOTrainer

    def count(inputs: Any) -> Counts:
        completions = inputs["completion_mask"].sum()
        prompts = (inputs["attention_mask"].sum() - completions) // 2  # there are two of each
        return {
            "samples": len(inputs["input_ids"]) // 2,
            "tokens": prompts + completions,
            "trained_tokens": completions,
        }

    parts = shared_parts(request, workload)
    settings = {**shared_settings(request, workload), "max_length": LONGEST}
    if settings.get("train_sampling_strategy") == "group_by_length":
        settings |= {"remove_unused_columns": False, "length_column_name": "longest"}
        parts["train_dataset"] = parts["train_dataset"].map(_with_longest).sort("longest")
    return counting(DPOTrainer, count, seen)(args=DPOConfig(**settings), **parts)


def _with_longest(row: dict[str, str]) -> dict[str, int]:
    """The tokens of a pair's longer side: its words."""
    prompt, *sides = (len(row[name].split()) for name in ("prompt", "chosen", "rejected"))
    return {"longest": prompt + max(sides)}


def make_grpo(request: Request, workload: Workload, seen: Seen) -> Any:
    """Sampled completions, with TRL's default loss (DAPO's) and no KL term."""
    from trl import GRPOConfig, GRPOTrainer

    def count(inputs: Any) -> Counts:
        completions = inputs["completion_mask"].sum()
        return {
            "samples": len(inputs["prompt_ids"]) / NUM_COMPLETIONS,
            "tokens": inputs["prompt_mask"].sum() / NUM_COMPLETIONS + completions,
            "trained_tokens": completions,
        }

    sampling = {
        "per_device_train_batch_size": workload.batch * NUM_COMPLETIONS,
        "num_generations": NUM_COMPLETIONS,
        "max_completion_length": LONGEST_SAMPLED,
        "temperature": 1.0,
        "loss_type": "dapo",
        "beta": 0.0,
    }
    parts = shared_parts(request, workload)
    settings = {**shared_settings(request, workload), **sampling, **request.settings}
    settings.pop("weights", None)
    return counting(GRPOTrainer, count, seen)(
        args=GRPOConfig(**settings), reward_funcs=even, **parts
    )


TRAINERS = {"sft": make_sft, "dpo": make_dpo, "grpo": make_grpo}


def add_clock(trainer: Any, seen: Seen, cuda: bool) -> None:
    """Note when training begins and when each step ends."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **keywords: Any) -> None:
            seen.moments.append(now())

        def on_step_end(self, *args: Any, **keywords: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            seen.moments.append(now())

    trainer.add_callback(Clock())


def join_steps(seen: Seen) -> list[Step]:
    """Steps from the clock and from what the forwards of each one were given."""
    steps = []
    for n in range(len(seen.moments) - 1):
        mine = [part for part in seen.batches if part["step"] == n]
        sums = {
            name: round(sum(float(part[name]) for part in mine))
            for name in ("samples", "tokens", "trained_tokens")
        }
        loss = sum(float(part["loss"]) for part in mine)
        steps.append(Step(seconds=seen.moments[n + 1] - seen.moments[n], loss=loss, **sums))
    return steps


def main() -> None:
    """Do what the request says and leave `outcome.json` beside it."""
    request = read_request()
    workload = Workload.read(request.folder)
    import torch
    import trl
    from datasets import load_dataset  # noqa: F401  # imported before the floor is taken
    from peft import LoraConfig  # noqa: F401

    getattr(trl, f"{workload.method.upper()}Trainer")
    torch.set_num_threads(request.threads)
    trainer_at = now()
    memory = Memory(request.device)
    seen = Seen()
    trainer = TRAINERS[workload.method](request, workload, seen)
    add_clock(trainer, seen, request.device == "cuda")
    trainer.train()
    Outcome(
        contender=request.contender,
        round=request.round,
        to_trainer_s=trainer_at - request.started,
        to_first_step_s=seen.moments[1] - request.started,
        pass_s=seen.moments[-1] - seen.moments[0] + seen.before_s,
        floor_bytes=memory.floor,
        peak_bytes=memory.look(),
        before_s=seen.before_s,
        before_samples=workload.samples if seen.before_s else 0,
        note=f"weights {trainer.model.dtype}, {len(seen.batches)} forwards",
        steps=join_steps(seen),
    ).write(request.scratch / "outcome.json")


if __name__ == "__main__":
    main()
