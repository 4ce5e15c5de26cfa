// Our texts in the page's language: the section stableCascade of locales/<language>/main.json.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const languages = await api
  .fetchApi("/i18n")
  .then((answer) => answer.json())
  .catch(() => ({}));

/** The text of this name, with values in place of {names}. */
export function say(name, values = {}) {
  const language = app.extensionManager.setting.get("Comfy.Locale");
  const text = languages[language]?.stableCascade?.[name] ?? languages.en?.stableCascade?.[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);
}
