"""Names of the files that runs store in MLflow, and files of shared results beside them."""

# of a cell
PROTOCOL = "protocol.json"
METRICS = "metrics.json"
PER_IMAGE = "per_image.npz"
DETECTIONS = "detections.npz"
PARTS = "parts.npz"
HEAD = "head/head.safetensors"
PICTURES = "pictures"
GALLERY = f"{PICTURES}/gallery.zip"
# of the run of one backbone, suite and seed
PARENT = "run.json"
OPTIONS = "options.yaml"
REPORT = "report/index.html"
