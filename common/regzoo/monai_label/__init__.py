"""What a MONAI Label server asks of a bundle: requests, studies, answers."""

from regzoo.monai_label.request import RequestedPaird, Steps, from_server
from regzoo.monai_label.serving import Answerd, served_weights, training_folder
from regzoo.monai_label.studies import is_served, split_studies, study_pairs

__all__ = [
    "Answerd",
    "RequestedPaird",
    "Steps",
    "from_server",
    "is_served",
    "served_weights",
    "split_studies",
    "study_pairs",
    "training_folder",
]
