"Everything, for notebooks: `from gear_fastai.all import *`, as `fastai.vision.all` does."
from fastai.vision.all import *

from .augment import *
from .cache import *
from .calibration import *
from .checkpoint import *
from .cnn import *
from .dataset import *
from .drawing import *
from .evaluation import *
from .export import *
from .files import *
from .inference import *
from .learner import *
from .loaders import *
from .model_folder import *
from .photo import *
from .plots import *
from .probe import *
from .recipes import *
from .report import *
from .review import *
from .reviewer import *
from .sources import *
from .training import *
from .transfer import *
from .widget import *
