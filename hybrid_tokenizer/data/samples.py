"""Photographs that scikit-image and scikit-learn ship, so that the demo needs no download."""

from pathlib import Path

from PIL import Image

from hybrid_tokenizer.data.open import open_rgb
from hybrid_tokenizer.errors import optional

SKIMAGE_FILES = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}
SKLEARN_FILES = {"temple": "china.jpg", "flower": "flower.jpg"}


def sample_photographs() -> dict[str, Image.Image]:
    """Seven colour photographs by name.

    Returns:
        RGB images, in sorted order of the name.

    Raises:
        HybridTokenizerError: the extra `eval`, whose packages ship the photographs, is not installed.

    Examples:
        >>> sample_photographs()["cat"].size
        (451, 300)
    """
    with optional():
        import skimage
        import sklearn

    folders = (
        (Path(skimage.__file__).parent / "data", SKIMAGE_FILES),
        (Path(sklearn.__file__).parent / "datasets" / "images", SKLEARN_FILES),
    )
    return dict(sorted((name, open_rgb(folder / file)) for folder, files in folders for name, file in files.items()))
