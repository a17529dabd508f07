"""The chaos rig: a short selection of its scenarios, and that its verdicts mean something."""
