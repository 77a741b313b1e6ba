"""Which files are pictures: the formats that are read, and the names that files of these formats end with."""

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # named, so that no other decoder (EPS: Ghostscript) ever starts
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # in any case
