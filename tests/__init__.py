import os

# Some tests load onnxruntime before octet, which keeps it from reporting home, can.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
