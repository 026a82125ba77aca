"use strict";
const element = id => document.getElementById(id);

// Text alone, never HTML: names of files and messages are of strangers.
function line(parent, tag, text, kind) {
  const made = parent.appendChild(document.createElement(tag));
  made.textContent = text;
  made.className = kind || "";
}

function show(figure, file, name, answer) {
  figure.replaceChildren();
  if (answer.heat_map) {
    const picture = figure.appendChild(new Image());
    picture.alt = "Heat map of " + file.name;
    picture.src = "data:image/png;base64," + answer.heat_map;
  }
  const caption = figure.appendChild(document.createElement("figcaption"));
  if (answer.error) {
    line(caption, "strong", "Not scored", "wrong");
    line(caption, "span", answer.error);
  } else {
    const words = { anomaly: "Anomaly", normal: "Normal" };
    const kind = { anomaly: "wrong", normal: "right" }[answer.decision];
    line(caption, "strong", words[answer.decision] || "Score " + answer.score.toPrecision(4), kind);
    if (answer.decision)
      line(caption, "span", "Score " + answer.score.toPrecision(4) +
        ", threshold " + answer.threshold.toPrecision(4));
    if (answer.probability !== null)
      line(caption, "span", "Above " + Math.min(99.9, 100 * answer.probability).toFixed(1) +
        " % of normal images");
  }
  line(caption, "span", file.name + ", " + name, "soft");
}

async function score(files) {
  const name = element("detector").value;
  const shown = [...files].map(file => {
    const figure = document.createElement("figure");
    line(figure, "figcaption", file.name + " …", "soft");
    return [file, figure];
  });
  element("found").prepend(...shown.map(([, figure]) => figure));
  for (const [file, figure] of shown) {
    let answer;
    try {
      const address = "v1/" + encodeURIComponent(name) + "/score?heat_map=png";
      const response = await fetch(address, { method: "POST", body: file });
      answer = await response.json();
    } catch (error) {
      answer = { error: "The server does not answer (" + error.message + ")." };
    }
    show(figure, file, name, answer);
  }
}

const drop = element("drop"), input = element("files");
input.addEventListener("change", () => { score(input.files); input.value = ""; });
for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
  document.addEventListener(kind, event => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") score(event.dataTransfer.files);
  });
