// The picture: a point is clicked, or moved with the arrow keys.
const place = (picture, y, x) => {
  const inside = (share) => Math.min(Math.max(share, 0), 0.9999);
  const mark = picture.querySelector('.fv-mark');
  mark.style.display = '';
  mark.style.top = `${100 * inside(y)}%`;
  mark.style.left = `${100 * inside(x)}%`;
  trigger('select', {y: inside(y), x: inside(x)});
};
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
