"Everything, for notebooks: `from gear_fastai.all import *`, as `fastai.vision.all` does."
from fastai.vision.all import *

from .augment import *
from .cache import *
from .calibration import *
from .cnn import *
from .compare import *
from .data import *
from .distill import *
from .evaluation import *
from .folder import *
from .inference import *
from .merge import *
from .model import *
from .photo import *
from .plots import *
from .report import *
from .sample import *
from .training import *
from .transfer import *
from .widget import *
