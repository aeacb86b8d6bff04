"""Makes the data sets that `sources` opens: checked once, written whole."""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import logging
import pathlib
import shutil
import sys
import types

import tensorflow_datasets as tfds
import tqdm

from coltran_jax.data import checking, decoding, listing, sources

DataError = decoding.DataError
# A folder without splits: by the first bits of a picture file's SHA-256.
VALID_SHARE, TEST_SHARE = 0.05, 0.05
NOTHING = types.MappingProxyType({})
_SHARD_BYTES = 1 << 28
_IMAGENET_TARS = ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar')
_log = logging.getLogger('coltran')


@dataclasses.dataclass(frozen=True)
class Report:
  """What `prepare` made: {split: number of pictures}, {id: why skipped}.

  monochrome: ids of the pictures that `color_only` left out.
  """

  counts: dict[str, int]
  skipped: dict[str, str]
  monochrome: list[str] = dataclasses.field(default_factory=list)


class _Pictures(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Writes pictures that were checked.

  By shards, because the writer of a `GeneratorBasedBuilder` needs TensorFlow
  above a gigabyte.
  """

  VERSION = tfds.core.Version('1.0.0')
  url_infos = NOTHING  # To download.
  shards = None  # {split: [function that yields the records of a shard]}

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3)),
          'id': tfds.features.Text(),
        }
      ),
      metadata=tfds.core.MetadataDict(),
    )

  def _shard_iterators_per_split(self, dl_manager):
    del dl_manager
    return self.shards


class Folder(_Pictures, skip_registration=True):
  """Any folder of pictures."""


class Sports(_Pictures, skip_registration=True):
  """The '100 sports' photographs: train/CLASS/*.jpg and valid/CLASS/*.jpg."""


_BUILDERS = {'folder': Folder, 'sports': Sports}


def prepare(name, source, data_dir, workers=None, color_only=False):
  """Makes the data set DATA_DIR/NAME of a source; returns a Report.

  Every picture is decoded once. Those that cannot be used are skipped and
  listed: broken ones, links out of the source, and files of `train` that are
  in `valid` or `test` too. A run that was ended goes on where it was; the data
  set appears when it is whole. If it is there already, made of the same files,
  nothing is done. imagenet2012 is made by tfds, unchecked, from the beginning.

  Args:
    name: 'folder', 'sports' or 'imagenet2012'.
    source: for `folder`, any folder of pictures. If it has a folder `train`,
      its folders `train`, `valid` and `test` are the splits; else the bytes of
      a file decide: 90 % train, 5 % valid, 5 % test, the same file always the
      same. For `sports`, the unzipped folder; for `imagenet2012`, the folder of
      the ILSVRC2012 tar files.
    data_dir: folder of data sets.
    workers: processes; by default one a CPU.
    color_only: leave gray and sepia pictures out of `train`. A colorizer that
      has seen some may learn that a photo stays gray. Not of imagenet2012.

  Raises:
    DataError: the source is not as it must be, the data set was made of other
      files or with other options, another process prepares it, no space or
      memory, ...
  """
  sources.check_name(name)
  data_dir = pathlib.Path(data_dir)
  try:
    if name == 'imagenet2012':
      if color_only:
        raise DataError('imagenet2012 is made by tfds, of all its pictures')
      return _prepare_imagenet(source, data_dir)
    return _prepare(name, pathlib.Path(source), data_dir, workers, color_only)
  except OSError as error:
    reason = error.strerror or str(error)  # tfds gives the latter alone.
    raise DataError(f'{error.filename or data_dir}: {reason}') from error


def _prepare(name, source, data_dir, workers, color_only):
  found, skipped = listing.find(name, source)
  lines = [f'{one.id}\0{one.stamp}' for one in found]
  stamp = sources.crc(lines + ['color only'] * color_only)
  target = data_dir / name / str(_Pictures.VERSION)
  if target.exists():
    return _report_of(target, stamp)
  work = data_dir / f'.{name}.incomplete'
  with checking.locked(work):
    checked = checking.check_all(source, found, work, workers)
    splits, reasons = _splits(found, checked)
    skipped |= reasons
    monochrome = _leave_out(splits, checked) if color_only else []
    if not splits:
      id, reason = next(iter(skipped.items()))
      raise DataError(
        f'{source}: none of {len(skipped)} pictures can be used; the first, '
        f'{id}: {reason}'
      )
    metadata = {
      'source': stamp,
      'skipped': skipped,
      'monochrome': monochrome,
      'fingerprints': {
        split: f'{len(part)}-'
        + sources.crc(f'{one.id}\0{checked[one.id].digest}' for one in part)
        for split, part in splits.items()
      },
    }
    built = _write(name, splits, checked, source, work, metadata)
    target.parent.mkdir(parents=True, exist_ok=True)
    built.rename(target)
    shutil.rmtree(work)
  counts = {split: len(part) for split, part in splits.items()}
  return Report(counts, skipped, monochrome)


def _report_of(target, stamp):
  """The Report of what is there; DataError if it was made otherwise."""
  try:
    made = tfds.builder_from_directory(target).info
  except Exception as error:  # tfds raises many kinds.
    raise DataError(
      f'{target} is there already, but no data set or damaged; remove it '
      f'({decoding.one_line(error)})'
    ) from error
  if made.metadata.get('source') != stamp:
    raise DataError(
      f'{target} is there already, made of other files or with other options; '
      'remove it, or choose another --data_dir'
    )
  _log.info('%s is there already', target)
  counts = {split: one.num_examples for split, one in made.splits.items()}
  metadata = made.metadata
  return Report(counts, metadata['skipped'], metadata.get('monochrome', []))


def _write(name, splits, checked, source, work, metadata):
  """Writes the tfds data set below the folder work; returns its folder."""
  tfds.disable_progress_bar()
  shutil.rmtree(work / 'build', ignore_errors=True)  # Of a run that was ended.
  builder = _BUILDERS[name](data_dir=work / 'build', file_format='array_record')
  builder.info.metadata.update(metadata)
  total = sum(len(part) for part in splits.values())
  with tqdm.tqdm(
    total=total, desc='writing', unit='photo', disable=None
  ) as bar:
    builder.shards = {
      split: [
        _Shard(shard, checked, source, work, bar)
        for shard in _shards(part, checked)
      ]
      for split, part in splits.items()
    }
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # Tells of downloads.
        builder.download_and_prepare()
    except RuntimeError as error:  # What array_record makes of a full disk.
      reason = decoding.one_line(error)
      raise DataError(f'{work} cannot be written: {reason}') from error
  return pathlib.Path(builder.data_dir)


def _splits(pictures, checked):
  """({split: [Found]}, {id: reason}) of the pictures that were checked."""
  splits, skipped, seen = collections.defaultdict(list), {}, {}
  # Evaluation first: a file that is in two splits is kept out of training.
  for one in sorted(pictures, key=lambda one: (one.split or '') == 'train'):
    result = checked[one.id]
    if result.reason:
      skipped[one.id] = result.reason
      continue
    split = one.split or _split_of(result.digest)
    first_split, first_id = seen.setdefault(result.digest, (split, one.id))
    if first_split == split:
      splits[split].append(one)
    else:
      skipped[one.id] = f'is the same file as {first_id}'
  if not any(one.split for one in pictures) and 'valid' not in splits:
    _hold_out(splits, checked)
  order = [split for split in listing.SPLITS if splits.get(split)]
  return {split: splits[split] for split in order}, skipped


def _hold_out(splits, checked):
  """Moves a picture of few, and its copies, to `valid`: training wants one."""
  train = splits.get('train', [])
  digests = {checked[one.id].digest for one in train}
  if len(digests) > 1:
    least = min(digests)
    splits['valid'] = [one for one in train if checked[one.id].digest == least]
    splits['train'] = [one for one in train if checked[one.id].digest != least]


def _leave_out(splits, checked):
  """Takes gray and sepia pictures out of `train`; returns their ids."""
  if 'train' not in splits:
    return []
  train = splits['train']
  splits['train'] = [one for one in train if checked[one.id].kind == 'color']
  if not splits['train']:
    raise DataError('no picture to train on has colors')
  return [one.id for one in train if checked[one.id].kind != 'color']


def _split_of(digest):
  """The split of a file: `train`, or `valid` or `test` by their shares."""
  place = int(digest[:8], 16) / (1 << 32)
  if place < VALID_SHARE:
    return 'valid'
  return 'test' if place < VALID_SHARE + TEST_SHARE else 'train'


def _shards(found, checked):
  """Yields lists of the pictures that make a shard each."""
  shard, size = [], 0
  for one in found:
    if shard and size + checked[one.id].size > _SHARD_BYTES:
      yield shard
      shard, size = [], 0
    shard.append(one)
    size += checked[one.id].size
  yield shard


@dataclasses.dataclass(frozen=True)
class _Shard:
  """Yields the records of one shard when called."""

  found: list
  checked: dict
  source: pathlib.Path
  work: pathlib.Path
  bar: tqdm.tqdm

  def __call__(self):
    for one in self.found:
      result = self.checked[one.id]
      if result.converted:
        data = checking.converted(self.work, result.digest).read_bytes()
      else:
        data = (self.source / one.path).read_bytes()
        if hashlib.sha256(data).hexdigest() != result.digest:
          raise DataError(
            f'{self.source / one.path} has changed; remove {self.work} and run '
            'again'
          )
      yield one.id, {'image': data, 'id': one.id}
      self.bar.update()


def _prepare_imagenet(source, data_dir):
  source = pathlib.Path(source)
  missing = [tar for tar in _IMAGENET_TARS if not (source / tar).is_file()]
  if missing:
    raise DataError(
      f'{source} has no {" and no ".join(missing)}; download them from '
      'image-net.org (an account is needed)'
    )
  needs = ('tensorflow', 'importlib_resources')
  if not all(importlib.util.find_spec(module) for module in needs):
    raise DataError(
      "making imagenet2012 needs TensorFlow: pip install 'coltran-jax[prepare]'"
    )
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  builder = tfds.builder(
    'imagenet2012', data_dir=data_dir, file_format='array_record'
  )
  config = tfds.download.DownloadConfig(
    manual_dir=source, try_download_gcs=False
  )
  with contextlib.redirect_stdout(sys.stderr):
    builder.download_and_prepare(download_config=config)
  counts = {
    split: builder.info.splits[theirs].num_examples
    for split, theirs in sources.IMAGENET_SPLITS.items()
  }
  return Report(counts, {})
