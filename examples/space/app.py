"""A Space on which a student is heard beside its teacher, side by side with the words that differ.

Variables of the Space: `STUDENT_MODEL` and `TEACHER_MODEL`, names on the Hub or folders, and `SPEECH_LANGUAGE` for
multilingual models.
"""

import os

import torch

from hf_distil_whisper import (
    build_demo,
    load_model,
    load_processor,
)

STUDENT = os.environ.get("STUDENT_MODEL", "distil-whisper/distil-small.en")
TEACHER = os.environ.get("TEACHER_MODEL", "openai/whisper-small.en")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

demo = build_demo(
    load_model(STUDENT).to(DEVICE),
    load_model(TEACHER).to(DEVICE),
    load_processor(TEACHER),
    student_processor=load_processor(STUDENT),
    language=os.environ.get("SPEECH_LANGUAGE"),
    names=(STUDENT, TEACHER),
)

if __name__ == "__main__":
    demo.launch()
