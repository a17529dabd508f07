"""What an operator runs, as one command line: `gotohotel …`.

__main__  the command line         stack    the embedded stack under a supervisor
gateway   Envoy's configuration    tokens   the laptop's issuer of tokens
demo      the main job, as a story audit    the invariants, checked
"""
