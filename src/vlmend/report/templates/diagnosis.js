for (const box of document.querySelectorAll(".slides")) {
  const slides = [...box.querySelectorAll(".slide")]
    .sort((a, b) => a.dataset.layer - b.dataset.layer);
  const others = box.querySelector(".others");
  const control = box.querySelector(".control");
  const range = control.querySelector("input");
  const name = control.querySelector("output");
  box.append(...slides);
  if (others) others.remove();
  const show = () => {
    slides.forEach((slide, index) => { slide.hidden = index !== Number(range.value); });
    const layer = slides[range.value].dataset.layer;
    name.textContent = layer;
    range.setAttribute("aria-valuetext", "decoder layer " + layer);
  };
  range.addEventListener("input", show);
  control.hidden = slides.length < 2;
  show();
}
