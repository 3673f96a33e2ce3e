// Appended where the page holds an excerpt of the records: what it lacks is in their files, and a number names its first records only.

const shownWhole = shown;
shown = (value) => (value === null || value === undefined ? "in its file" : shownWhole(value));

const describedWhole = described;
described = (record) => {
  const [list, details] = describedWhole(record);
  details.querySelector("summary").textContent = `What this page holds of it; the whole record is ${record.cell.name}.json`;
  return [list, details];
};

const openWhole = open;
open = (button) => {
  openWhole(button);
  const more = Number(button.dataset.more ?? 0);
  if (more) document.getElementById("dialog-how").textContent += ` It was made from ${more} further records too, which are not listed.`;
};
