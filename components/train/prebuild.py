"""Compile DeepSpeed's CPU communication operator ahead of time: `python -m components.train.prebuild`.

Left alone, DeepSpeed compiles it in the first training, which takes up to minutes, and a compilation that was killed
leaves a lock on which every later one waits for ever.
"""

import os

from components.train.launcher import extensions_folder, remove_stale_locks, search_path


def main() -> None:
    """Build the operator into `extensions_folder()`, where a training looks for it; nothing where it is there."""
    folder = extensions_folder()
    remove_stale_locks(folder)
    os.environ |= {"TORCH_EXTENSIONS_DIR": str(folder), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    os.environ["PATH"] = search_path()

    from deepspeed.ops.op_builder import ShareMemCommBuilder  # pyright: ignore[reportAttributeAccessIssue]

    ShareMemCommBuilder().load(verbose=False)
    print(f"DeepSpeed's communication operator is in {folder}")


if __name__ == "__main__":
    main()
