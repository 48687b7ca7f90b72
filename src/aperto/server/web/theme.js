// Sets the chosen theme before the first paint; without a choice the system's is followed.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("theme")) ?? "";
} catch {
  document.documentElement.dataset.theme = "";
}
