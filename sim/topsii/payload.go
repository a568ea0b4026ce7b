package topsii

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strconv"
	"time"
	"unicode/utf8"
)

const (
	timeLayout      = "2006-01-02 15:04:05"
	maxCallIDDigits = 18
)

// call is what the simulator knows of a payload after reading it.
type call struct {
	id       int64
	identity uint64 // equal for two payloads that register the same thing
	raw      []byte
}

type fieldKind int

const (
	text fieldKind = iota
	clock
	number
)

type field struct {
	name     string
	kind     fieldKind
	optional bool
}

// shape is the documented form of one endpoint's payload.
type shape struct {
	wrapper string
	fields  []field
	attempt string // the field that, with the call id, identifies an attempt; empty: all fields together do
}

// shapes are all endpoints. createNotAnswer has no subCtiHistoryId, on purpose.
var shapes = map[string]shape{
	CallStart: {wrapper: "predictiveCallCreateCallStart", fields: []field{
		{name: "callId", kind: number},
		{name: "predictiveStaffId"},
		{name: "targetTel"},
	}},
	CallEnd: {wrapper: "predictiveCallCreateCallEnd", attempt: "subCtiHistoryId", fields: []field{
		{name: "callId", kind: number},
		{name: "callStartTime", kind: clock},
		{name: "callEndTime", kind: clock},
		{name: "subCtiHistoryId"},
		{name: "targetTel"},
		{name: "predictiveStaffId"},
		{name: "errorInfo", optional: true},
	}},
	NotAnswer: {wrapper: "predictiveCallCreateNotAnswer", fields: []field{
		{name: "callId", kind: number},
		{name: "callTime", kind: clock},
		{name: "errorInfo1"},
		{name: "errorInfo2", optional: true},
	}},
}

var identitySeed = maphash.MakeSeed()

// parse reads a payload and accepts exactly the documented shape.
// It goes token by token because encoding/json's structs would let repeated and differently cased names pass.
func parse(endpoint string, raw []byte) (call, error) {
	if !utf8.Valid(raw) {
		return call{}, errors.New("jsonData is not UTF-8")
	}
	sh := shapes[endpoint]
	values, err := sh.read(raw)
	if err != nil {
		return call{}, err
	}
	c := call{raw: raw}
	var identity maphash.Hash
	identity.SetSeed(identitySeed)
	for i, f := range sh.fields {
		if f.kind == number {
			// read let only digits through
			if c.id, err = strconv.ParseInt(values[i], 10, 64); err != nil {
				return call{}, fmt.Errorf("%s: %w", f.name, err)
			}
		}
		if sh.attempt == "" || sh.attempt == f.name {
			// A field's length goes in front, so that neighbours cannot lend each other characters.
			_, _ = identity.WriteString(strconv.Itoa(len(values[i])) + ":" + values[i])
		}
	}
	c.identity = identity.Sum64()
	return c, nil
}

// read returns the values in the order of the shape's fields; an absent optional one is empty.
func (sh shape) read(raw []byte) ([]string, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	for _, want := range []json.Token{json.Delim('{'), sh.wrapper, json.Delim('{')} {
		if err := expect(dec, want); err != nil {
			return nil, err
		}
	}
	values := make([]string, len(sh.fields))
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, notJSON(err)
		}
		i := sh.index(name)
		if i < 0 {
			return nil, fmt.Errorf("%s has no field %q", sh.wrapper, name)
		}
		if values[i] != "" {
			return nil, fmt.Errorf("%s is given twice", name)
		}
		value, err := dec.Token()
		if err != nil {
			return nil, notJSON(err)
		}
		if values[i], err = sh.fields[i].check(value); err != nil {
			return nil, err
		}
	}
	for _, want := range []json.Token{json.Delim('}'), json.Delim('}')} {
		if err := expect(dec, want); err != nil {
			return nil, err
		}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("jsonData goes on after its end")
	}
	for i, f := range sh.fields {
		if values[i] == "" && !f.optional {
			return nil, fmt.Errorf("%s is required", f.name)
		}
	}
	return values, nil
}

func (sh shape) index(name json.Token) int {
	for i, f := range sh.fields {
		if f.name == name {
			return i
		}
	}
	return -1
}

// check returns the value of a field as text, which is never empty.
func (f field) check(value json.Token) (string, error) {
	if f.kind == number {
		n, ok := value.(json.Number)
		if !ok || !isCallID(n.String()) {
			return "", fmt.Errorf("%s must be a JSON number of 1 to %d digits", f.name, maxCallIDDigits)
		}
		return n.String(), nil
	}
	s, ok := value.(string)
	if !ok || s == "" {
		return "", fmt.Errorf("%s must be a string that is not empty", f.name)
	}
	if f.kind == clock && !isTime(s) {
		return "", fmt.Errorf("%s must be a time YYYY-MM-DD HH:mm:ss, not %q", f.name, s)
	}
	return s, nil
}

func isCallID(s string) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != "" && len(s) <= maxCallIDDigits
}

// isTime also counts the characters, because time.Parse takes an hour of one digit and fractions of a second.
func isTime(s string) bool {
	_, err := time.Parse(timeLayout, s)
	return err == nil && len(s) == len(timeLayout)
}

func expect(dec *json.Decoder, want json.Token) error {
	got, err := dec.Token()
	if err != nil {
		return notJSON(err)
	}
	if got != want {
		return fmt.Errorf("jsonData must have %q here, not %q", fmt.Sprint(want), fmt.Sprint(got))
	}
	return nil
}

func notJSON(err error) error {
	return fmt.Errorf("jsonData is not JSON: %w", err)
}
