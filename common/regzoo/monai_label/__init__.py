"""What a MONAI Label server asks of a bundle: requests, studies, answers."""

from regzoo.monai_label.answer import BuildAnswerd
from regzoo.monai_label.request import RequestedPaird, ServedCompose
from regzoo.monai_label.studies import (
    is_served,
    served_weights,
    split_studies,
    split_study_images,
    study_pairs,
    training_folder,
)

__all__ = [
    "BuildAnswerd",
    "RequestedPaird",
    "ServedCompose",
    "is_served",
    "served_weights",
    "split_studies",
    "split_study_images",
    "study_pairs",
    "training_folder",
]
