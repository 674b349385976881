# Prints each scalar of a JSON document as PATH<tab>VALUE; the parts of a path are joined by "/".
function eat(n) { text = substr(text, n + 1) }
function emit(value,    path, i) {
  for (i = 1; i <= depth; i++) path = path (i > 1 ? "/" : "") key[i]
  print path "\t" value
}
function plain(s) {
  gsub(/\\n/, "", s); gsub(/\\"/, "\"", s); gsub(/\\\//, "/", s); gsub(/\\\\/, "\\", s)
  return s
}
{ text = text $0 " " }
END {
  while (text != "") {
    c = substr(text, 1, 1)
    if (c == "{") { depth++; list[depth] = 0; name = 1; eat(1) }
    else if (c == "[") { depth++; list[depth] = 1; key[depth] = 0; name = 0; eat(1) }
    else if (c == "}" || c == "]") { depth--; eat(1) }
    else if (c == ":") { name = 0; eat(1) }
    else if (c == ",") { if (list[depth]) key[depth]++; else name = 1; eat(1) }
    else if (match(text, /^"([^"\\]|\\.)*"/)) {
      s = plain(substr(text, 2, RLENGTH - 2)); eat(RLENGTH)
      if (name) key[depth] = s; else emit(s)
    }
    else if (match(text, /^[-+.0-9a-zA-Z]+/)) { s = substr(text, 1, RLENGTH); eat(RLENGTH); emit(s) }
    else eat(1)
  }
}
