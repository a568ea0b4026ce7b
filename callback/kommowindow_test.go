package callback

import (
	"errors"
	"strings"
	"testing"
)

// Each field has its bounds, and a refusal names the field.
func TestKommoWindow(t *testing.T) {
	const base = `"call_id":"a","direction":"inbound"`
	for body, field := range map[string]string{
		`{` + base + `,"state":"opened"}`: "-",
		`{` + base + `,"state":"saved","phone":"+1305","duration":7,"started_at":1700000000,"entity":{"type":"lead","id":1},"result":"a\n\tb"}`: "-",
		`{` + base + `,"state":"cancelled","entity":null}`:                            "-",
		`{` + base + `,"state":"saved","result":"` + strings.Repeat("é", 5000) + `"}`: "-",
		`{` + base + `,"state":"saved","result":"` + strings.Repeat("é", 5001) + `"}`: "result",
		`{` + base + `,"state":"saved","result":"a\u0000"}`:                           "result",
		`{` + base + `,"state":"opened","result":"a"}`:                                "result",
		`{` + base + `,"state":"cancelled","entity":{"type":"lead","id":1}}`:          "entity",
		`{` + base + `,"state":"saved","entity":{"type":"task","id":1}}`:              "entity.type",
		`{` + base + `,"state":"saved","entity":{"type":"lead"}}`:                     "entity.id",
		`{` + base + `,"state":"saved","entity":{"type":"lead","id":-1}}`:             "entity.id",
		`{` + base + `,"state":"saved","entity":{"type":"lead","id":1.5}}`:            "entity.id",
		`{` + base + `,"state":"saved","entity":"lead"}`:                              "entity",
		`{` + base + `,"state":"saved","user_id":1}`:                                  "user_id", // the token says who it is
		`{` + base + `}`:                 "state",
		`{` + base + `,"state":"Saved"}`: "state",
		`{` + base + `,"state":"opened","phone":"` + strings.Repeat("1", 129) + `"}`: "phone",
		`{` + base + `,"state":"opened","duration":604801}`:                          "duration",
		`{` + base + `,"state":"opened","duration":-1}`:                              "duration",
		`{` + base + `,"state":"opened","started_at":4102444801}`:                    "started_at",
		`{"direction":"inbound","state":"opened"}`:                                   "call_id",
		`{"call_id":"` + strings.Repeat("a", 129) + `","direction":"inbound"}`:       "call_id",
		`{"call_id":"a","state":"opened"}`:                                           "direction",
		`[]`:                                                                         "", `{}{}`: "", `{`: "", `null`: "call_id",
	} {
		_, err := DecodeKommoWindow([]byte(body))
		var refusal *FieldError
		switch {
		case errors.As(err, &refusal):
			if refusal.Field != field || !strings.HasPrefix(refusal.Message, field) && field != "user_id" || refusal.Message == "" {
				t.Errorf("%.120s: %+v, want field %q", body, refusal, field)
			}
		case err != nil || field != "-":
			t.Errorf("%.120s: %v, want field %q", body, err, field)
		}
	}
}

// Whatever is sent is refused in words or passes the check that router makes, and never panics.
func FuzzDecodeKommoWindow(f *testing.F) {
	f.Add([]byte(`{"call_id":"a","direction":"inbound","state":"saved","entity":{"type":"lead","id":1},"result":"x"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		w, err := DecodeKommoWindow(body)
		var refusal *FieldError
		if err != nil && !errors.As(err, &refusal) {
			t.Errorf("%T", err)
		}
		if err == nil && w.Check() != nil {
			t.Error(w.Check())
		}
	})
}
