"""One folder a method: its settings and its trainer. A method is added by a folder here, a YAML in
configs/algorithms and a row in utils/frame/pipeline.py."""
