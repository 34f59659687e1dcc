"""The main job in one call: simulate a liquid state machine, store it, ask for it, show it.

``network`` and ``task`` are the model, ``experiment`` runs it, ``records`` says what a trial is
as labelled records, ``picture`` draws what was stored, and ``main`` puts them together.
"""

from neurostore.demo.main import run

__all__ = ["run"]
