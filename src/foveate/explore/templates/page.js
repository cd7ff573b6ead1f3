// The stage: files that are dropped or chosen, and points of the picture.
const most = MOST_BYTES;
const say = (text) => trigger('clear', {text: text});
const send = (file) => {
  if (!file) return;
  if (file.size > most) {
    say(`'${file.name}' is too large; accepted: up to ${most >> 20} MB`);
    return;
  }
  const reader = new FileReader();
  reader.onload = () => {
    const data = reader.result.slice(reader.result.indexOf(',') + 1);
    trigger('upload', {name: file.name, data: file.size ? data : ''});
  };
  reader.onerror = () => say(`'${file.name}' cannot be read`);
  reader.readAsDataURL(file);
};
const place = (picture, y, x) => {
  const inside = (share) => Math.min(Math.max(share, 0), 0.9999);
  const mark = picture.querySelector('.fv-mark');
  mark.style.display = '';
  mark.style.top = `${100 * inside(y)}%`;
  mark.style.left = `${100 * inside(x)}%`;
  trigger('select', {y: inside(y), x: inside(x)});
};
element.addEventListener('change', (event) => {
  send(event.target.files[0]);
  event.target.value = '';  // the same file can be chosen again
});
for (const kind of ['dragover', 'dragleave', 'drop']) {
  element.addEventListener(kind, (event) => {
    event.preventDefault();
    element.classList.toggle('fv-over', kind === 'dragover');
    if (kind === 'drop') send(event.dataTransfer.files[0]);
  });
}
element.addEventListener('click', (event) => {
  const picture = event.target.closest('.fv-picture');
  if (!picture) return;
  const box = picture.getBoundingClientRect();
  place(picture, (event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width);
});
const steps = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
element.addEventListener('keydown', (event) => {
  const picture = event.target.closest('.fv-picture');
  if (!picture || !steps[event.key]) return;
  event.preventDefault();
  const [down, right] = steps[event.key];
  const {display, top, left} = picture.querySelector('.fv-mark').style;
  const [y, x] = display === 'none' ? [50, 50] : [parseFloat(top), parseFloat(left)];
  place(picture, y / 100 + down / 32, x / 100 + right / 32);
});
// A picture that is rendered again keeps the focus of the keys.
let focused = false;
element.addEventListener('focusin', (event) => { focused = !!event.target.closest('.fv-picture'); });
watch('value', () => {
  const picture = element.querySelector('.fv-picture');
  if (focused && picture) picture.focus({preventScroll: true});
});
