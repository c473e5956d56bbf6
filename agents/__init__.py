"""Who moves it: one module a stage, each a thin shell over a pure function;
`stage.py` owns decode -> work -> write -> ack.
"""
