"""Draw `samples.png` with the model that a server serves: `python docs/images/samples.py [HOST:PORT]`."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from emuflow_client import GeneratorClient

CAPTIONS = (
    "a red seven left of a green two",
    "a white zero left of a yellow three",
    "a magenta four left of a blue five",
    "a blue eight above a white seven",
    "a yellow six left of a white one",
    "a magenta two above a green six",
)
SEEDS = (1, 2)


def main(endpoint: str) -> None:
    figure, axes = plt.subplots(len(SEEDS), len(CAPTIONS), figsize=(12, 4.2), facecolor="white")
    with GeneratorClient(endpoint) as client:
        for row, seed in zip(axes, SEEDS, strict=True):
            for axis, caption in zip(row, CAPTIONS, strict=True):
                axis.imshow(client.generate(caption, seed=seed).image, interpolation="nearest")
                axis.set_axis_off()
    for axis, caption in zip(axes[0], CAPTIONS, strict=True):
        words = caption.split()
        axis.set_title(" ".join(words[:3]) + "\n" + " ".join(words[3:]), fontsize=10)
    figure.tight_layout(pad=0.6, h_pad=1.5)
    figure.savefig(Path(__file__).with_name("samples.png"), dpi=110)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
