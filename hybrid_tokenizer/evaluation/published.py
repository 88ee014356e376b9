"""The values of the paper's Tables 2 to 4, for the rows that they name."""

from typing import Any

TABLE_2 = {  # SSIM, PSNR; the SSIM column fits `ssim_paper_compat`, not the standard definition
    "movq": (0.52, 27.57),
    "var_vae": (0.48, 24.77),
    "vqgan": (0.58, 28.29),
    "magvit2": (0.38, 23.94),
    "seed": (0.002, 9.12),
    "lavit": (0.005, 8.87),
    "hybrid": (0.33, 23.23),
}
"""From "Balancing Token Efficiency and Structural Accuracy ...", by this package's names. The paper does not name the
checkpoints it ran."""
TABLE_3 = {  # ImageReward, PickScore, HPSv2, as printed
    "seed": (27.32, 0.35, 18.65),
    "lavit": (38.54, 0.20, 21.47),
    "hybrid": (43.28, 0.45, 24.32),
}
"""5,000 pairs of COCO. The paper gives neither the selection nor the units. PickScore's column adds up to 1, so it is a
share of preferences. ImageReward is a z-score and HPSv2 a cosine, so both columns seem to be 100 times the mean."""
TABLE_4 = {"seed": 1.22, "lavit": 1.90, "hybrid": 2.88}
"""Average scores of the user study: 25 sets of ImageNet, 15 volunteers, three methods."""
TOLERANCE = 0.1


def published_values(row: dict[str, Any]) -> dict[str, Any]:
    """`published_psnr`, `published_ssim`, and which of them differ from the measured values by more than 10 %.

    Every size of a model (`movq_270m`) has the model's values. Other models and variants (`seed2`, `hybrid@84`) have none.
    """
    name = row["method"]
    family = next((family for family in TABLE_2 if name == family or name.startswith(family + "_")), None)
    if family is None or name.startswith("hybrid_"):
        return {}
    ssim, psnr = TABLE_2[family]
    pairs = {"published_psnr": (psnr, row.get("psnr")), "published_ssim": (ssim, row.get("ssim_paper_compat"))}
    differs = [
        key
        for key, (published, measured) in pairs.items()
        if measured is not None and abs(measured - published) > TOLERANCE * published
    ]
    return {key: published for key, (published, _) in pairs.items()} | {"published_differs": differs}


def published_alignment(method: str) -> dict[str, float]:
    """`published_image_reward`, `published_pickscore_share` and `published_hps_v2` of a row of Table 3; empty for others."""
    columns = ("published_image_reward", "published_pickscore_share", "published_hps_v2")
    return dict(zip(columns, TABLE_3[method], strict=True)) if method in TABLE_3 else {}
