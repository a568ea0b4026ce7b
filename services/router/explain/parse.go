package explain

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"callrelay/callback"
)

// What a callback is, as the journal names it.
const (
	SourceStart = "ameyo.call_start"
	SourceEnd   = "ameyo.call_end"
)

// maxText bounds a pasted callback, in bytes.
const maxText = 64 << 10

var (
	// address finds a callback's path and query in a URL or in a line of any web server's log.
	address = regexp.MustCompile(`/(call_start\.php|index\.php|v1/ameyo/call-start|v1/ameyo/call-end)\?([^\s<>]+)`)
	// dumped is one element of PHP's print_r of an array.
	dumped = regexp.MustCompile(`(?m)^[ \t]*\[([^\]\n]+)\] =>[ \t]?(.*)$`)
	bare   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*=`)
)

var errUnreadable = errors.New("no callback is recognised: paste a URL with its parameters, a line of a log, parameters like " +
	"unique_id=1&systemDisposition=BUSY, a JSON object, or a PHP array as print_r writes it")

// Parse reads a callback as people have it: a URL as it stands in the dialer's settings or in a log, a line of the PHP
// relay's or of callrelay's daily logs, parameters, a JSON object, or a PHP array as print_r writes it.
func Parse(text string) (source string, params callback.Params, err error) {
	if len(text) > maxText {
		return "", nil, fmt.Errorf("a callback is at most %d bytes long", maxText)
	}
	text = strings.Trim(strings.TrimSpace(text), "\"'`<>")
	switch {
	case text == "":
		return "", nil, errUnreadable
	case strings.Contains(text, " | incoming_get | "):
		return parseLine(text)
	case strings.Contains(text, "] =>"):
		for _, m := range dumped.FindAllStringSubmatch(text, -1) {
			params = append(params, callback.Param{Name: strings.Trim(m[1], `'" `), Value: strings.TrimSpace(m[2])})
		}
		return sourceOf(params), params, nil
	case text[0] == '{':
		params, err = object([]byte(text))
		return sourceOf(params), params, err
	}
	if m := address.FindStringSubmatch(text); m != nil {
		params = callback.ParseQuery(unescapeHTML(strings.TrimRight(m[2], "\"'`,")))
		if strings.Contains(m[1], "start") {
			return SourceStart, params, nil
		}
		return SourceEnd, params, nil
	}
	// Another address, e.g. behind a proxy that renames the path, or only the query.
	query := text
	if _, after, ok := strings.Cut(text, "?"); ok {
		query, _, _ = strings.Cut(after, " ")
	}
	if !bare.MatchString(query) {
		return "", nil, errUnreadable
	}
	params = callback.ParseQuery(unescapeHTML(query))
	return sourceOf(params), params, nil
}

// unescapeHTML takes back what a web page made of a copied URL.
func unescapeHTML(query string) string { return strings.ReplaceAll(query, "&amp;", "&") }

// sourceOf tells a call start from a call end by its parameters.
func sourceOf(p callback.Params) string {
	if p.Get("cs_unique_id") != "" || p.Get("unique_id") == "" && p.Get("systemDisposition") == "" && p.Get("hangupCauseCode") == "" {
		return SourceStart
	}
	return SourceEnd
}

// parseLine reads a line of the daily logs that tells a callback.
func parseLine(line string) (string, callback.Params, error) {
	l, ok := readLine(line)
	if !ok || l.label != "incoming_get" {
		return "", nil, errUnreadable
	}
	source := l.source()
	var client struct {
		URI string `json:"uri"`
	}
	if json.Unmarshal([]byte(l.value("client")), &client) == nil && strings.Contains(client.URI, "?") {
		if u, err := url.Parse(client.URI); err == nil && strings.Contains(u.Path, "start") {
			source = SourceStart
		}
	}
	params, err := object([]byte(l.value("query")))
	return source, params, err
}

// object reads parameters written as JSON: strings, numbers, or what the dialer sends as a string of JSON.
func object(raw []byte) (callback.Params, error) {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil, errors.New("the parameters are not a JSON object")
	}
	var params callback.Params
	for name, value := range values {
		var text string
		switch {
		case json.Unmarshal(value, &text) == nil:
		case string(value) == "null":
			continue
		default:
			text = string(value)
		}
		params = append(params, callback.Param{Name: name, Value: strings.TrimSpace(text)})
	}
	return params, nil
}
