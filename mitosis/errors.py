"""Every error this package raises on purpose.

::

    MitosisError
    ├── SlideError (OSError)            a slide cannot be opened or read
    │   ├── SlideNotFoundError (FileNotFoundError)
    │   └── MppError (ValueError)       no usable µm/px
    ├── AnnotationError (ValueError)    a file of marks cannot be understood
    ├── ConfigError (ValueError)        a setting is unknown or out of range
    ├── PatchIndexError (ValueError)    a folder of patches is missing, damaged or of other settings
    │   └── LeakageError                one case on both sides of a split
    ├── ModelError (ValueError)         a model file is missing, damaged or does not fit
    ├── OutputError (OSError)           a result cannot be written
    └── ClusterError (ConnectionError)  the cluster does not answer, or its workers are not as they should be

A message says what was given, why that does not work and what to do. Each error is also a builtin type, so
``except OSError`` around a batch of slides does what one expects.
"""

__all__ = [
    "AnnotationError",
    "ClusterError",
    "ConfigError",
    "LeakageError",
    "MitosisError",
    "ModelError",
    "MppError",
    "OutputError",
    "PatchIndexError",
    "SlideError",
    "SlideNotFoundError",
]


class MitosisError(Exception):
    """Root of the tree; the command line turns it into one sentence and exit code 1."""


class SlideError(MitosisError, OSError):
    """A slide cannot be opened or read."""


class SlideNotFoundError(SlideError, FileNotFoundError):
    """There is no such slide file."""


class MppError(SlideError, ValueError):
    """A slide has no usable pixel size (µm/px)."""


class AnnotationError(MitosisError, ValueError):
    """A file of marks cannot be understood."""


class ConfigError(MitosisError, ValueError):
    """A setting is unknown or out of its range."""


class PatchIndexError(MitosisError, ValueError):
    """A folder of patches is missing, damaged or was cut with other settings."""


class LeakageError(PatchIndexError):
    """The same case, or the same image, stands on both sides of a split."""


class ModelError(MitosisError, ValueError):
    """A model file is missing, damaged or does not fit."""


class OutputError(MitosisError, OSError):
    """A result cannot be written."""


class ClusterError(MitosisError, ConnectionError):
    """The cluster does not answer, or its workers are not as they should be."""
