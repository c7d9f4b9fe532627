"""Load a policy (LoRA, optional 4-bit), save it, merge it.

On CUDA unsloth does the loading where it can be used (`backend.choose`); everywhere else transformers + peft do,
with bitsandbytes for 4-bit. The rest of the kit sees a `Policy`.
"""

import copy
import functools
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from transformers.utils.logging import disable_progress_bar

from recr1_lite import assets
from recr1_lite.assets.fetch import note
from recr1_lite.common import RecR1Error, place_folder
from recr1_lite.policy.backend import choose, load_unsloth
from recr1_lite.policy.rollouts import completion_logps, end_ids
from recr1_lite.profiles import Profile

disable_progress_bar()  # a bar for each weights file read or written
logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)  # tells of the pad token of _ready
_say_once = functools.cache(note)


@dataclass
class Policy:
    """A causal language model, its tokenizer (left padding, pad token that is not the end token) and the backend."""

    model: Any
    tokenizer: Any
    backend: str  # "transformers" or "unsloth"; `backend.choose` says why
    name: str = ""  # the model's name in the profile

    @functools.cached_property
    def end_ids(self) -> list[int]:
        """Ids of all tokens that end an answer; the first is the one to teach."""
        return end_ids(self.model, self.tokenizer)


def load_policy(
    profile: Profile, seed: int = 0, adapter: str | Path | None = None, trainable=True, backend: str | None = None
) -> Policy:
    """The profile's model with a LoRA adapter: a fresh one, or the one saved in the folder `adapter`.

    The model is an asset of this kit, a local folder, a GGUF file, or a name on the Hub. The seed makes the adapter's
    random half. `trainable=False` without `adapter` gives the bare model. backend: "unsloth" or "transformers",
    default as `backend.choose` finds; what it does not grant is said in one line on stderr. Raises RecR1Error for a
    model or an adapter that cannot be read, and for 4-bit without bitsandbytes."""
    set_seed(seed)
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise RecR1Error(f"there is no adapter in {str(adapter)!r} (adapter_config.json is missing); train one first")
    if profile.model in assets.ENCODERS:
        raise RecR1Error(f"{profile.model} is an encoder for dense retrieval and writes nothing; name another model")
    source, chosen = assets.model_path(profile.model), choose(profile, backend)
    profile = replace(profile, dtype=chosen.dtype)
    for reason in chosen.reasons:
        _say_once(reason)
    asked, plain = (profile, source, seed, adapter, trainable), chosen.name == "transformers"
    try:
        model, tokenizer = _load_plain(*asked) if plain else load_unsloth(*asked, chosen.vllm)
    except RecR1Error:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:  # of files they cannot read
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        what = f"the adapter {str(adapter)!r} for the model" if adapter else "the model"
        advice = "check the name, the files and the network"
        raise RecR1Error(f"{what} {profile.model!r} cannot be loaded ({reason}); {advice}") from error
    return _ready(Policy(model, tokenizer, chosen.name, profile.model))


def _load_plain(profile: Profile, source: str, seed: int, adapter: str | Path | None, trainable: bool):
    """(model, tokenizer) by transformers and peft, with bitsandbytes for 4-bit."""
    card = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # each process that `accelerate launch` starts has its own
    device, dtype = card if torch.cuda.is_available() else "cpu", getattr(torch, profile.dtype)
    attention = "grouped" if device == "cpu" else "sdpa"  # CUDA has kernels for the stock one
    options: dict[str, Any] = {"dtype": dtype, "device_map": device, "attn_implementation": attention}
    if profile.load_in_4bit:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise RecR1Error("4-bit loading needs bitsandbytes; run: pip install bitsandbytes")
        four = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **four)
    local = assets.offline() or Path(source).is_dir()
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    model: Any = AutoModelForCausalLM.from_pretrained(source, local_files_only=local, **options)
    for module in model.modules() if device == "cpu" else ():
        # bitsandbytes' fast path for evaluation has no gradient and, once taken, stays on in training
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    elif trainable:
        set_seed(seed)  # reading the weights may have drawn numbers
        sizes: dict = dict(r=profile.lora_rank, lora_alpha=2 * profile.lora_rank)
        model = get_peft_model(model, LoraConfig(**sizes, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model.eval(), tokenizer


def save_adapter(policy: Policy, folder: str | Path) -> Path:
    """Write the adapter (LoRA weights, configuration) to `folder`, whole or not; it names its model as the profile."""

    def write(work: Path) -> None:
        policy.model.save_pretrained(work, selected_adapters=["default"], save_embedding_layers=False)
        (work / "README.md").unlink(missing_ok=True)  # an empty form with the model's local path in it
        config = json.loads((work / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = policy.name
        (work / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))

    return place_folder(folder, write)


def scale_adapter(policy: Policy, factor: float) -> None:
    """Multiply what the adapter adds to the weights: 0 is the untrained model, 1 changes nothing. `save_adapter` writes
    it so. Between the two lies the straight line of WiSE-FT (arXiv 2109.01903)."""
    policy.model.peft_config["default"].lora_alpha *= factor
    for module in policy.model.modules():
        if isinstance(module, LoraLayer) and "default" in module.scaling:
            module.scaling["default"] *= factor


def save_merged(policy: Policy, folder: str | Path) -> Path:
    """Fold the adapter into a copy of the weights and write a plain transformers model with its tokenizer."""
    if getattr(policy.model, "is_loaded_in_4bit", False):
        raise RecR1Error("a 4-bit model cannot be merged without loss; load the policy with load_in_4bit=False first")

    def write(work: Path) -> None:
        merged = policy.model
        if isinstance(merged, PeftModel):
            merged = copy.deepcopy(merged).merge_and_unload(safe_merge=True)
        merged.save_pretrained(work)
        policy.tokenizer.save_pretrained(work)

    return place_folder(folder, write)


def token_logps(policy: Policy, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Log-probability of every completion token after its rendered prompt, in nats; 0 at padding. Shape (B, T)."""
    prompts, ends = zip(*pairs, strict=True)
    options = dict(return_tensors="pt", padding=True, add_special_tokens=False)
    left = policy.tokenizer(list(prompts), padding_side="left", **options).to(policy.model.device)
    right = policy.tokenizer(list(ends), padding_side="right", **options).to(policy.model.device)
    with torch.no_grad():
        asked = left.input_ids, left.attention_mask, right.input_ids, right.attention_mask
        values, _ = completion_logps(policy.model, *asked)
    return values * right.attention_mask


def _ready(policy: Policy) -> Policy:
    """Left padding; a pad token that is not the end token, else the end of an answer is masked like padding; all end
    tokens in the generation settings, which a merged folder takes along."""
    tokenizer, ends = policy.tokenizer, policy.end_ids
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, *ends[:1]):
        special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids)
        tokenizer.pad_token = next((token for token, number in special if number not in ends), None)
        if tokenizer.pad_token is None:
            raise RecR1Error("the tokenizer has no special token to pad with but its end token; choose another model")
    settings = policy.model.generation_config
    given = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if not set(ends) <= set(given):
        settings.eos_token_id = [end for end in dict.fromkeys([*given, *ends]) if end is not None]
    return policy
