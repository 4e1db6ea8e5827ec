"""What is learnt: a task makes batches, gives the supervised loss and reads the predictions."""

from potstill.tasks.classification import Classification
from potstill.tasks.contract import Answers, Task
from potstill.tasks.detection import Detection
from potstill.tasks.image_from_noise import ImageFromNoise
from potstill.tasks.image_to_image import ImageToImage
from potstill.tasks.language import LanguageModeling
from potstill.tasks.text_classification import TextClassification

__all__ = [
    "Answers",
    "Classification",
    "Detection",
    "ImageFromNoise",
    "ImageToImage",
    "LanguageModeling",
    "Task",
    "TextClassification",
]
