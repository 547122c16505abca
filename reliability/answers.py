"""What is wrong in every wrong input, as the user wrote it: the field, and the value that came.

Written from the inputs, not from the messages: the scorer wants to find both in the message.
One line for each case: table/name | field | value.
"""

from __future__ import annotations

__all__ = ["ANSWERS"]

TEXT = """
input/no data | x | (0, 3)
input/no batch, check | training data | no batch
input/no batch, run | training data | no batch
input/no batch, fit | steps | 0
input/no batch, evaluate | split='test' | no batch
input/no batch, predict | predict | no batch
input/batch above the data | batch_size | 9
input/float labels | labels | float32
input/labels (n, 1), data | y | (8, 1)
input/labels (n, 1), init | labels | (8, 1)
input/label = classes | labels | 3
input/label -1 | labels | -1
input/label = classes, later | labels | 3
input/label -1, later | labels | -1
input/one-hot of wrong width | labels | (8, 4)
input/one-hot of integers | labels | (8, 3)
input/images unscaled, data | x | uint8
input/images unscaled, init | x | uint8
input/fields image and label | x | ['image', 'label']
input/only the label missing | y | ['x']
input/NaN | 'x' | NaN
input/inf | 'x' | infinity
input/NaN, data | x | NaN
input/all masked | 'mask' | 0
input/empty batch | batch | {'x': 0, 'y': 0}
input/ragged batch | fields of a batch | {'x': 8, 'y': 7}
input/batch is a tuple | batch | tuple
input/text | 'x' | <U1
input/scalar field | 't' | scalar
nouns/raw key | key | array([0, 0], dtype=uint32)
nouns/step of an objective | g | Objective
nouns/step with a float | tx | 0.1
nouns/run with a float | tx | 0.1
nouns/run of a step | run | Step
nouns/check of a step | check | Step
nouns/gradient of a step | gradient | Step
nouns/half of a gradient | half | Gradient
nouns/stacked step | stacked | Step
nouns/evaluate a step | evaluate | Step
nouns/accumulate an objective | accumulate | Objective
nouns/clipped step | clipped | Step
nouns/sam of an objective | sam | Objective
nouns/per_example of a gradient | per_example | Gradient
nouns/ema of a gradient | ema | Gradient
nouns/ensemble of an objective | ensemble | Objective
nouns/shard of a gradient | shard | Gradient
nouns/init of a gradient | init | Gradient
nouns/fit of a gradient | fit | Gradient
nouns/recipe without a step | recipe | Objective
nouns/model class | model | <class 'nnkit.models.mlp.MLP'>
nouns/loss by name | loss | 'mse'
nouns/shard of 60 over 8 | 'x' | 60
nouns/mesh of more devices than there are | mesh | 64
nouns/shard over an axis that is not | batch | 'run'
nouns/accumulate 3 of 8 | accumulate | n=3
nouns/accumulate 0 | n | 0
nouns/grid of two lengths | grid['b'] | (3,)
nouns/grid of scalars | grid['a'] | ()
nouns/grid of a list | grid['weight_decay'] | list
nouns/grid of lists of two lengths | grid['a'] | list
nouns/grid without names | grid | list
nouns/recipe asks for another name | recipe | 'rate'
nouns/empty grid | grid | empty
nouns/ensemble of 0 | n | 0
nouns/ema 1 | decay | 1.0
nouns/per_example with statistics | carry | 'batch_stats/BatchNorm_0/mean'
nouns/clipped to 0 | norm | 0
nouns/frozen altogether | predicate | none
nouns/adapt with another shape | head/kernel | float32[4,3]
nouns/adapt without a leaf | head/bias | missing
nouns/integer params | params | int32[]
nouns/metric that is no Mean | 'own' | float32
nouns/reduced loss | loss | ()
nouns/reduced loss, check | loss | ()
nouns/reduced metric | best | ()
nouns/init of stacked | objective | stacked
nouns/state of another step | state | State
numbers/rate 0 | learning_rate | 0.0
numbers/rate -1 | learning_rate | -1
numbers/rate NaN | learning_rate | nan
numbers/rate text | learning_rate | '1e-3'
numbers/rate schedule | learning_rate | <function constant_schedule
numbers/grid rate 0 | learning_rate | 0.0
numbers/grid rate NaN | learning_rate | nan
numbers/grid rate text | learning_rate | '1e-3'
numbers/config rate 0 | learning_rates | 0.0
numbers/config rate NaN | learning_rates | nan
numbers/config rate text | learning_rates | '1e-3'
numbers/seed -1 | seed | -1
numbers/run steps 0 | steps | 0
numbers/run steps text | steps | '10'
numbers/fit steps 0 | steps | 0
numbers/fit steps 1.5 | steps | 1.5
numbers/fit log_every 0 | log_every | 0
numbers/every 0 | every | {0: ...}
numbers/every without call | every | {1: 5}
numbers/fit of a generator without steps | steps | None
numbers/data end early | steps | 0
numbers/save_every 0 | save_every | 0
numbers/patience mode | mode | 'best'
numbers/patience checks | checks | 0
numbers/patience metric | 'test' rows | 'f1'
numbers/config of arrays | config.a.b | ndarray
numbers/interval of nothing | interval | 0
numbers/interval at 95 | confidence | 95
models/widths 3 | widths | 3
models/widths 5, 3 | widths | 5
models/widths text | widths | '64'
models/widths None | widths | None
models/width a | widths[0] | 'a'
models/width 0 | widths[1] | 0
models/width 8.0 | widths[0] | 8.0
models/width True | widths[0] | True
models/no widths | widths | ()
models/activation | activation | 'relu'
models/dropout 1 | dropout | 1.0
models/dropout -1 | dropout | -1
models/dropout NaN | dropout | nan
models/dropout text | dropout | '0.5'
models/dropout_in 50 | dropout_in | 50
models/Linear a | width | 'a'
models/Linear 0 | width | 0
models/Linear (3,) | width | (3,)
models/channels 8 | channels | 8
models/channels -8 | channels[1] | -8
models/no channels | channels | ()
models/hidden 0 | hidden | 0
models/hidden (8,) | hidden | (8,)
models/classes 2.5 | classes | 2.5
models/dropout 2 | dropout | 2
arrays/empty | x | (0, 2)
arrays/empty mapping | fields | no fields
arrays/batch too large | batch_size | 5
arrays/batch 0 | batch_size | 0
arrays/batch -3 | batch_size | -3
arrays/batch 2.0 | batch_size | 2.0
arrays/batch '2' | batch_size | '2'
arrays/batch True | batch_size | True
arrays/lengths | y | 3
arrays/NaN | x | NaN
arrays/NaN in y | y | NaN
arrays/labels (N,1) | y | (4, 1)
arrays/uint8 | x | uint8
arrays/uint8 by name | image | uint8
arrays/strings | x | <U1
arrays/bytes | y | |S1
arrays/objects | x | object
arrays/None | x | None
arrays/dates | x | datetime64[s]
arrays/ragged | x | ragged
arrays/ragged arrays | x | ragged
arrays/generator | x | generator
arrays/nested | x | mapping
arrays/scalar | x | scalar
arrays/int64 | y | 0..2147483648
arrays/uint64 | x | 9223372036854775808
arrays/float64 | x | 1e+300
arrays/mask of ints | mask | int64
arrays/mask of rank 2 | mask | (4, 2)
arrays/seed -1 | seed | -1
arrays/seed large | seed | 4294967296
arrays/seed 0.5 | seed | 0.5
arrays/shuffle | shuffle | 'yes'
arrays/y twice | y | mapping
arrays/field twice | field | 'z'
arrays/name | field | 3
commands/rate 0 | learning_rates | 0.0
commands/rate -1 | learning_rates | -1.0
commands/rate NaN | learning_rates | nan
commands/rate text | --learning-rates | 'fast'
commands/steps 0 | steps | 0
commands/steps 1.5 | --steps | '1.5'
commands/field | --learning-rate | 0.1
commands/field of demo | --step | 10
commands/experiment | experiment | 'digist'
commands/no such file | file | ideas/mine.py
commands/verb | verb | 'trian'
commands/verb unlike any | verb | 'xyz'
config/steps 1.5 | steps | 1.5
config/steps text | steps | '10'
config/steps True | steps | True
config/steps None | steps | None
config/dropout text | dropout | '0.5'
config/decay NaN | weight_decay | nan
config/decay inf | weight_decay | inf
config/widths 8 | widths | 8
config/widths (8.5,) | widths[0] | 8.5
config/model of another name | model | 'cn'
config/decay 1 | decay | 1
config/split 3 | split | 3
config/batch 0 | batch_size | 0
config/seeds -1 | seeds | -1
config/epochs 0 | epochs | 0
config/nested field | optimizer | 'momentun'
config/grid of text | --grid steps | 'many'
config/name twice in JSON | 'steps' | twice
config/value twice in a grid | --grid steps | 1
config/rate beside tx | learning_rate | 0.1
optimizers/momentum 1.5 | momentum | 1.5
optimizers/warmup above steps | warmup | 20
optimizers/decay above steps | decay | 6
optimizers/layerwise decay 0 | decay | 0.0
optimizers/schedule shorter than the run | linear | steps=10
optimizers/pattern that matches nothing | pattern | 'haed'
optimizers/state of other sizes | state | float32[3]
optimizers/state of another optimizer | state | missing
optimizers/update that changes a dtype | count | float32[]
optimizers/update that changes the tree | params/head/bias | missing
training/probabilities | model | softmax
training/probability | model | sigmoid
training/target of 2 | labels | 2.0
training/outputs (n, 1) | outputs | (8, 1)
training/batch statistics of one | x | (1, 3)
training/no key | key | None
training/no train flag | Untold | no argument train
training/loss of two axes | loss | (3, 8)
training/channels first | x | (8, 3, 8, 8)
training/no batch axis | x | (8, 8, 3)
training/ids above the table | tokens | 3
later/label = classes, after init | 'y' | 3
later/label -1, after init | 'y' | -1
later/label 255, after init | 'y' | 255
later/another field | y | ['x', 'z']
later/label 255 | labels | 255
devices/mesh of other sizes | mesh | data=3
devices/mesh of 0 | mesh | 0
runs/folder is a file | folder | notes.txt
runs/folder that cannot be made | folder | /proc/nnkit/run
runs/name with NUL | folder | null byte
runs/name of 300 characters | folder | too long
runs/other configuration | steps | 4
runs/other model | w | float32[2,3]
runs/wider numbers | w | float64[2,3]
runs/no checkpoint | checkpoint | no checkpoint
runs/step that is not there | step | 5
machine/TPU asked, CPU found | platform | 'tpu'
machine/unknown platform | platform | 'cuda'
machine/more devices than there are | devices | 64
"""


def _read(text: str) -> dict[str, tuple[str, str]]:
    found = {}
    for line in text.strip().splitlines():
        name, field, value = line.split(" | ", 2)
        assert name not in found, name
        found[name] = (field.strip(), value.strip())
    return found


ANSWERS = _read(TEXT)
