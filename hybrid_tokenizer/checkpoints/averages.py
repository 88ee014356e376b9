"""Averaged weights that are stored beside the raw ones, as by latent-diffusion's `LitEma`."""

from torch import Tensor

from hybrid_tokenizer.errors import HybridTokenizerError, shorten

AVERAGED = "model_ema."
COUNTERS = ("decay", "num_updates")


def prefer_averages(state: dict[str, Tensor], source: str, ignored: tuple[str, ...] = ("loss.",)) -> dict[str, Tensor]:
    """The state dict with each weight replaced by its average, if the file has averages.

    An average is called `model_ema.` and the weight's name without dots. `ignored` are prefixes of weights that are not
    loaded. Every other weight must have an average, because raw and averaged weights do not belong in one model.
    """
    averages = {key.removeprefix(AVERAGED): value for key, value in state.items() if key.startswith(AVERAGED)}
    weights = {key: value for key, value in state.items() if not key.startswith(AVERAGED)}
    if not averages:
        return weights
    names = {key.replace(".", ""): key for key in weights if not key.startswith(ignored)}
    lacking = sorted(key for dotless, key in names.items() if dotless not in averages)
    dotless_ignored = tuple(prefix.replace(".", "") for prefix in ignored)
    unknown = sorted(
        AVERAGED + key
        for key in averages
        if key not in names and key not in COUNTERS and not key.startswith(dotless_ignored)
    )
    if lacking or unknown:
        listed = "; ".join(
            f"{len(keys)} {what}: {shorten(keys)}"
            for what, keys in (("weights without an average", lacking), ("averages without a weight", unknown))
            if keys
        )
        raise HybridTokenizerError(f"{source}: its averaged weights do not fit: {listed}; download the file again")
    return weights | {key: averages[dotless] for dotless, key in names.items()}
