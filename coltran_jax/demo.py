"""The web page of `coltran demo`: a photo, its colorings, hints by clicks.

It runs where it is started, for who sits there, and asks nothing of the network:
no analytics, no fonts or scripts from elsewhere, and a policy that has the
browser refuse them. What is downloaded is what `coltran colorize` writes.
"""

import dataclasses
import os
import pathlib
import re
import tempfile

# Read when gradio is imported: no usage statistics, no look for new versions.
os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
os.environ['HF_HUB_OFFLINE'] = '1'

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

from coltran_jax import batch, hints, image, photo, pipeline, sheets

_SHOWN = 1024  # Longest side in pixels of pictures on the page.
_MOST_SAMPLES = 8
_POLICY = (
  '<meta http-equiv="Content-Security-Policy" content="default-src \'self\' '
  "data: blob: 'unsafe-inline' 'unsafe-eval'\">"
)
_STYLE = 'footer { display: none !important }'


@dataclasses.dataclass(frozen=True)
class Opened:
  """A photo on the page. shown: uint8 [h, w, 3], at most `_SHOWN` a side."""

  name: str
  read: photo.Photo
  shown: np.ndarray
  points: tuple = ()


@dataclasses.dataclass(frozen=True)
class Result:
  """One coloring: its file's name and bytes, and what the page shows of both."""

  name: str
  data: bytes
  shown: np.ndarray
  before: np.ndarray


def _shown(pixels):
  small = image.shrink(photo.eight_bit(pixels), _SHOWN)
  return np.ascontiguousarray(np.broadcast_to(small, (*small.shape[:2], 3)))


def open_photo(path):
  """Returns (Opened, its picture) of an uploaded file; (None, None) of None."""
  if path is None:
    return None, None
  try:
    read = photo.read(path)
  except photo.PhotoError as error:
    reason = str(error).removeprefix(f'{path}: ')
    raise gr.Error(f'{pathlib.Path(path).name}: {reason}') from error
  opened = Opened(pathlib.Path(path).name, read, _shown(read.pixels))
  return opened, opened.shown


def to_rgb(text):
  """Returns (red, green, blue) of '#rrggbb' or of what CSS calls rgb or rgba."""
  if text.startswith('#'):
    return tuple(bytes.fromhex(text[1:7]))
  numbers = re.findall(r'[\d.]+', text)[:3]
  return tuple(min(255, round(float(number))) for number in numbers)


def add_hint(opened, text, event: gr.SelectData):
  """Returns (Opened, its picture) with a hint at the pixel that was clicked."""
  height, width = opened.read.pixels.shape[:2]
  x, y = (
    min(side - 1, int((at + 0.5) * side / seen))
    for at, side, seen in zip(
      event.index, (width, height), opened.shown.shape[1::-1], strict=True
    )
  )
  points = (*opened.points, (x, y, to_rgb(text)))
  opened = dataclasses.replace(opened, points=points)
  return opened, _with_hints(opened)


def remove_hints(opened):
  """Returns (Opened, its picture) without hints."""
  if opened is None:
    return None, None
  opened = dataclasses.replace(opened, points=())
  return opened, opened.shown


def _with_hints(opened):
  picture = Image.fromarray(opened.shown)
  draw = ImageDraw.Draw(picture)
  scale = picture.width / opened.read.pixels.shape[1]
  radius = max(4, max(picture.size) // 80)
  for x, y, rgb in opened.points:
    at = ((x + 0.5) * scale, (y + 0.5) * scale)
    draw.circle(at, radius + 2, fill='white')
    draw.circle(at, radius, fill=tuple(rgb))
  return np.asarray(picture)


def _color(colorizer, opened, count, seed, temperature, vividness, fast):
  """Returns [(Result, caption)] of an Opened, the most likely first."""
  if opened is None:
    raise gr.Error('Choose a photo first.')
  count = int(count)
  (job,) = batch.plan([opened.name], None, count)
  guide = hints.Guide(opened.points) if opened.points else None
  try:
    colorings = colorizer.draw(
      opened.read,
      num_samples=count,
      seed=int(seed or 0),
      temperature=temperature,
      vividness=vividness,
      fast=fast,
      guide=guide,
    )
    before = _shown(pipeline.gray(opened.shown)[..., None].astype(np.uint8))
    made = []
    for number, bits in sheets.ranked(colorings):
      pixels = colorings[number - 1].pixels
      data = photo.encode(pixels, opened.read, job.format)
      name = job.outputs[number - 1].name
      result = Result(name, data, _shown(pixels), before)
      made.append((result, f'{number}: {bits:.3f} bits/dim'))
  except ValueError as error:  # PhotoError and HintError among them.
    raise gr.Error(str(error)) from error
  return made


def build(colorizer, folder, fast=False):
  """Returns the page, a `gradio.Blocks`.

  Args:
    colorizer: a `pipeline.Colorizer`.
    folder: where downloads are written, for as long as the page is served.
    fast: the colorizer has no third stage.
  """

  def show(results, index):
    result = results[index]
    path = pathlib.Path(tempfile.mkdtemp(dir=folder), result.name)
    photo.write(path, result.data)
    return (result.before, result.shown), gr.DownloadButton(
      f'Download {result.name}', value=str(path), interactive=True
    )

  def run(opened, count, seed, temperature, vividness, quick):
    made = _color(colorizer, opened, count, seed, temperature, vividness, quick)
    results = [result for result, _ in made]
    grid = [(result.shown, caption) for result, caption in made]
    return results, grid, *show(results, 0)

  def choose(results, event: gr.SelectData):
    return show(results, event.index)

  def open_another(path):
    empty = None, [], None, gr.DownloadButton('Download', interactive=False)
    return *open_photo(path), *empty

  with gr.Blocks(
    title='coltran', analytics_enabled=False, delete_cache=(600, 3600)
  ) as page:
    opened, results = gr.State(), gr.State()
    gr.Markdown('# Color a photo\nIt stays on this computer.')
    with gr.Row():
      with gr.Column():
        upload = gr.File(
          label='Photo',
          file_types=sorted(photo.EXTENSIONS),
          height=110,
          elem_id='upload',
        )
        picture = gr.Image(
          label='Click for a hint: this color is here',
          interactive=False,
          buttons=[],
          format='png',
          elem_id='picture',
        )
        with gr.Row():
          shade = gr.ColorPicker('#b03020', label='Color of hints')
          clear = gr.Button('Remove hints', elem_id='clear')
        with gr.Row():
          count = gr.Slider(
            1, _MOST_SAMPLES, 1, step=1, label='Colorings', elem_id='count'
          )
          seed = gr.Number(
            0,
            label='Seed',
            precision=0,
            minimum=0,
            maximum=(1 << 32) - 1,
            elem_id='seed',
          )
        temperature = gr.Slider(
          0,
          max(1.5, colorizer.decoding['temperature']),
          colorizer.decoding['temperature'],
          step=0.05,
          label='Temperature: 0 takes the most probable colors',
          elem_id='temperature',
        )
        vividness = gr.Slider(
          0,
          max(2, colorizer.decoding['vividness']),
          colorizer.decoding['vividness'],
          step=0.05,
          label='Vividness: more prefers vivid colors to dull ones',
          elem_id='vividness',
        )
        quick = gr.Checkbox(
          fast,
          interactive=not fast,
          label='Fast: leave out the third stage',
          elem_id='fast',
        )
        go = gr.Button('Color', variant='primary', elem_id='go')
      with gr.Column():
        slider = gr.ImageSlider(
          label='Before and after', interactive=False, elem_id='slider'
        )
        grid = gr.Gallery(
          label='All, the most likely first: click to see one above',
          allow_preview=False,
          columns=2,
          fit_columns=False,
          elem_id='grid',
        )
        download = gr.DownloadButton(
          'Download', interactive=False, elem_id='download'
        )
    seen, made = [opened, picture], [results, grid, slider, download]
    upload.change(open_another, upload, [*seen, *made])
    picture.select(add_hint, [opened, shade], seen)
    clear.click(remove_hints, opened, seen)
    go.click(
      run,
      [opened, count, seed, temperature, vividness, quick],
      made,
    )
    grid.select(choose, results, [slider, download])
  return page


def launch(page, port=None):
  """Returns the address that the page is served at, on this computer only.

  port: None takes a free one from 7860 on. Raises OSError if it is taken.
  """
  fonts = ['system-ui', 'sans-serif']
  _, address, _ = page.launch(
    server_name='127.0.0.1',
    server_port=port,
    share=False,
    quiet=True,
    prevent_thread_lock=True,
    theme=gr.themes.Default(font=fonts, font_mono=['monospace']),
    head=_POLICY,
    css=_STYLE,
    footer_links=[],
    ssr_mode=False,
    mcp_server=False,
    max_file_size='500mb',
  )
  return address
