// The results so far, for the owner of the study. The token stands behind the # of the link and is sent as a header only.

const at = (id) => document.getElementById(id);
const span = (interval) => (interval ? `${interval[0].toFixed(2)} to ${interval[1].toFixed(2)}` : "–");

function row(cells) {
  const line = document.createElement("tr");
  line.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
  return line;
}

async function refresh() {
  at("refresh").disabled = true;
  try {
    const answer = await fetch("/api/results", { headers: { "x-owner": location.hash.slice(1) } });
    const report = await answer.json();
    if (!answer.ok) throw new Error(report.error);
    at("counts").textContent = `${report.votes} votes on ${report.sets} sets; ${report.joined} ${report.joined === 1 ? "participant" : "participants"} joined, ${report.participants} voted, ${report.complete} on every set.`;
    at("scores").tBodies[0].replaceChildren(...report.rows.map((one) => row([one.method, one.score.toFixed(2), span(one.interval_over_sets), span(one.interval_over_participants), `${Math.round(100 * one.first)} %`])));
    at("scores").hidden = false;
    const { alpha } = report.agreement;
    at("notes").textContent = `First place is ${report.rows.length} points, last place 1. Krippendorff's alpha: ${alpha === null ? "–" : alpha.toFixed(3)}.`;
    at("status").textContent = "";
  } catch (error) {
    at("status").textContent = error instanceof TypeError ? "The server does not answer." : error.message;
    at("status").className = "bad";
  }
  at("refresh").disabled = false;
}

at("refresh").addEventListener("click", refresh);
refresh();
