"""The metrics of a configuration as MONAI's handlers: names, order, and what each compares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler
from regzoo.errors import RegZooError
from regzoo.metrics import FoldedVoxels, LabelDice, metric_handlers

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
# Tables, curves and their readers know the metrics by these names, in this order.
WEAK, SDM = "prostate_mr_trus_weak_ddf", "prostate_mr_trus_sdm"
SEG, DDMR = "prostate_mr_trus_conditional_seg", "abdominal_ct_ddmr"
PROSTATE = "tre_mm before_tre_mm adhoc_tre_mm before_adhoc_tre_mm gland_dsc before_gland_dsc gland_hd95_mm "
POINTS = "point_tre_mm before_point_tre_mm point_tre_median_mm before_point_tre_median_mm"
PROSTATE += f"before_gland_hd95_mm {POINTS} lost_labels"
THIRDS = "gland_dsc before_gland_dsc base_dsc before_base_dsc mid_dsc before_mid_dsc apex_dsc before_apex_dsc"
CT = "dsc before_dsc tre_mm before_tre_mm hd_mm before_hd_mm hd95_mm before_hd95_mm ncc before_ncc ssim before_ssim"
FIELD = "folded_percent log_jacobian_std"
NAMES = {
    (WEAK, "train"): "selection tre gland_dsc folded_percent",
    (SEG, "train"): "selection tre gland_dsc",
    (SDM, "train"): "gland_dsc folded_percent",
    (DDMR, "train"): "dsc ncc folded_percent",
    (WEAK, "evaluate"): f"{PROSTATE} {FIELD}",
    (SEG, "evaluate"): PROSTATE,
    (SDM, "evaluate"): f"{THIRDS} tre_mm before_tre_mm gland_hd95_mm before_gland_hd95_mm {POINTS} lost_labels "
    f"{FIELD} "
    "jacobian_gradient",
    (DDMR, "evaluate"): f"{CT} {POINTS} lost_labels {FIELD} sdlogj",
}


def compared(name: str) -> tuple[str, str]:
    """What a metric of a bundle compares, by its name."""
    metric = name.removeprefix("before_")
    if metric in ("folded_percent", "log_jacobian_std", "sdlogj", "jacobian_gradient"):
        return "ddf", "ddf"
    if metric == "lost_labels":
        return "warped_label", "unregistered_label"
    if metric.startswith("point_tre"):
        return f"{'warped' if name == metric else 'unregistered'}_points", "reference_points"
    prefix, kind = "adhoc_" * metric.startswith("adhoc_"), "image" if metric in ("ncc", "ssim") else "label"
    return f"{prefix}{'warped' if name == metric else 'unregistered'}_{kind}", f"{prefix}reference_{kind}"


@pytest.mark.parametrize(("bundle", "kind"), NAMES)
def test_names_order_and_items_of_the_bundles_metrics(bundle: str, kind: str) -> None:
    parser = ConfigParser()
    names = ("train", "evaluate") if kind == "evaluate" else ("train",)
    parser.read_config([str(BUNDLES / bundle / "configs" / f"{name}.json") for name in names])
    handlers = parser.get_parsed_content("validate#metrics")
    both = {**handlers.key, **handlers.additional}
    assert len(handlers.key) == 1 and list(both) == NAMES[bundle, kind].split()
    assert len({id(handler.metric_fn) for handler in both.values()}) == len(both)
    for name, handler in both.items():
        assert isinstance(handler, IgniteMetricHandler) and handler.save_details
        assert handler._output_transform([{key: key for key in compared(name)}]) == tuple([k] for k in compared(name))


def test_a_metric_is_measured_before_and_after() -> None:
    """Half of the fixed label before, all of it after; each with its own buffer."""
    label = torch.ones(1, 4, 4, 4)
    half = label * (torch.arange(4) < 2)
    case = {"warped_label": label, "reference_label": label, "unregistered_label": half, "ddf": torch.zeros(3, 4, 4, 4)}
    engine = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1, 4, 4, 4)}],
        network=torch.nn.Identity(),
        postprocessing=lambda item: item | {key: MetaTensor(value) for key, value in case.items()},
    )
    handlers = metric_handlers({"folded": FoldedVoxels(), "dsc": LabelDice()}, key="dsc", before=True)
    for name, handler in {**handlers.key, **handlers.additional}.items():
        handler.attach(engine, name)
    engine.run()
    assert engine.state.metrics == {"dsc": 1, "before_dsc": pytest.approx(2 / 3), "folded": 0}
    assert list(handlers.additional) == ["folded", "before_dsc"]


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(RegZooError, match=r"'tre'; choose one of dsc"):
        metric_handlers({"dsc": LabelDice()}, key="tre")
