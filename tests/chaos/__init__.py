"""Tests of the chaos rig: a short selection of its scenarios, and its verdicts."""
