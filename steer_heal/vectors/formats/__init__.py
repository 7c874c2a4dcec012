"""Vectors in the formats of other tools: read, recognise, write.

| format | file | who opens it |
| --- | --- | --- |
| steer-heal | .safetensors | `steer_heal.vectors.vector`: everything, exactly |
| steering-lite | .safetensors | steering-lite's `Vector.load` |
| gguf | .gguf | llama.cpp's `--control-vector`, repeng's `import_gguf` |
| npz | .npz | numpy: one array a layer |
| tensors | .safetensors | one tensor a layer, the layer's number in its name |
"""

from steer_heal.vectors.formats.files import FORMATS, check, origin, read, write
