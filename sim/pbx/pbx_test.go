package pbx

import (
	"context"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
)

const table = `{"integrations":[{"id":"acme","extensions":[
 {"id":"1","name":"0003*101","type":"phone","tokens":["t1"]},{"id":"2","name":"0003*102","type":"phone","tokens":["t2"]},
 {"id":"3","name":"0003*700","type":"queue","tokens":["t3"]},{"id":"4","name":"0003*104","type":"phone"}]}]}`

func newPBX(t *testing.T, seed uint64) *PBX {
	t.Helper()
	extensions, err := Extensions([]byte(table), "acme")
	if err != nil || len(extensions) != 3 {
		t.Fatalf("%v %v", extensions, err)
	}
	p, err := New(seed, extensions, time.Unix(1767000000, 0))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCalls(t *testing.T) {
	for _, scenario := range Scenarios {
		call, err := newPBX(t, 7).Call(scenario)
		if err != nil || len(call.Events) < 2 {
			t.Fatalf("%s: %+v %v", scenario, call, err)
		}
		if again, _ := newPBX(t, 7).Call(scenario); !reflect.DeepEqual(again, call) {
			t.Errorf("%s: the same seed makes other events", scenario)
		}
		if other, _ := newPBX(t, 8).Call(scenario); other.ID == call.ID {
			t.Errorf("%s: another seed makes the same call", scenario)
		}
		for _, e := range call.Events {
			if e.Params.Get("CallID") != call.ID || !strings.HasPrefix(e.Params.Get("SubCallID"), e.Extension.ID+"-") || len(e.Params.Get("EventTime")) != 16 ||
				e.Params.Has("RemoteNumber") && e.Params.Get("EventType") != "dial-in" {
				t.Errorf("%s: %+v", scenario, e)
			}
		}
	}
	if _, err := newPBX(t, 1).Call("?"); err == nil {
		t.Error("an unknown scenario")
	}
	if _, err := New(1, nil, time.Now()); err == nil {
		t.Error("a PBX without extensions")
	}
	if _, err := Extensions([]byte(table), "other"); err == nil {
		t.Error("an unknown integration")
	}
}

func TestSend(t *testing.T) {
	status := 200
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ext-event/t1" || r.FormValue("CallID") == "" || r.Method != "POST" {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Form)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`{"success":true,"requestId":"R"}`))
	}))
	call, _ := newPBX(t, 1).Call("answered")
	if id, err := Send(context.Background(), server.Client(), server.URL, call.Events[0]); id != "R" || err != nil {
		t.Errorf("%s %v", id, err)
	}
	status = 503
	if _, err := Send(context.Background(), server.Client(), server.URL, call.Events[0]); err == nil {
		t.Error("503 is taken for an acknowledgement")
	}
	server.Close()
	if _, err := Send(context.Background(), server.Client(), server.URL, call.Events[0]); err == nil || strings.Contains(err.Error(), "t1") {
		t.Errorf("the token shows: %v", err)
	}
}
