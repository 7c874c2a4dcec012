"""How strongly to steer: c*, sweeps over alpha and layers, and the controls a movement is held against."""
