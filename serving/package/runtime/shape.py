"""What `generator.json` says of the images that a model draws."""

from collections.abc import Mapping


def detail_stages(config: Mapping) -> int:
    """How often the sketch's grid is doubled up to the image's. Raises `ValueError` where it does not become that."""
    (rows, columns), (height, width) = config["coarse_grid"], config["fine_grid"]
    stages = (height // rows).bit_length() - 1
    if stages < 0 or (rows << stages, columns << stages) != (height, width):
        raise ValueError(f"a sketch of {rows}x{columns} cells does not become {height}x{width} by doubling")
    return stages


def sizes(config: Mapping) -> dict[tuple[int, int], int]:
    """Height and width of the images that a model draws, the largest first, and how many stages of details they take."""
    (height, width), last = config["image_size"], detail_stages(config)
    return {(height >> last - stage, width >> last - stage): stage for stage in range(last, -1, -1)}
