// Files that are chosen, or dropped anywhere on the page.
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
element.addEventListener('change', (event) => {
  send(event.target.files[0]);
  event.target.value = '';  // the same file can be chosen again
});
for (const kind of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();  // or the browser would leave the page for the file
    element.classList.toggle('fv-over', kind === 'dragover');
    if (kind === 'drop') send(event.dataTransfer.files[0]);
  });
}
