"""What a teacher answers to prompts: asked once, kept on disk, chosen from."""

from potstill.responses.choice import Chosen, choose
from potstill.responses.settings import LanguageTeacherConfig, ResponsesConfig
from potstill.responses.store import Answer, ResponseStore

__all__ = [
    "Answer",
    "Chosen",
    "LanguageTeacherConfig",
    "ResponseStore",
    "ResponsesConfig",
    "choose",
]
