package ingress

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"callrelay/callback"
	"callrelay/callback/wire"
	callbackv1 "callrelay/gen/callrelay/callback/v1"
)

// Every field of every callback is filled under its name in a query and read under it again, with what protobuf itself says of
// the message; of a repeated parameter the last counts, also when it is empty, and unknown ones are ignored.
func TestWire(t *testing.T) {
	for _, m := range []proto.Message{&callbackv1.AmeyoCallStart{}, &callbackv1.AmeyoCallEnd{}, &callbackv1.PbxEvent{}} {
		fields := m.ProtoReflect().Descriptor().Fields()
		params := callback.Params{{Name: "", Value: "x"}, {Name: "state", Value: "x"}, {Name: "sizeCache", Value: "x"}, {Name: "UniqueId", Value: "x"}}
		for i := range fields.Len() {
			params = append(params, callback.Param{Name: fields.Get(i).JSONName(), Value: "before"}, callback.Param{Name: fields.Get(i).JSONName(), Value: fields.Get(i).TextName()})
		}
		wire.Fill(m, params)
		n := 0
		m.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
			n++
			if value.String() != field.TextName() {
				t.Errorf("%s is %q", field.FullName(), value)
			}
			return true
		})
		read := wire.Params(m)
		if n != fields.Len() || len(read) != n || len(m.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("%T: %d fields, %d filled, %d read", m, fields.Len(), n, len(read))
		}
		for _, param := range read {
			if !slices.Contains(params, param) {
				t.Errorf("%T: read %v", m, param)
			}
		}
		wire.Fill(m, callback.Params{{Name: fields.Get(0).JSONName()}})
		if got := wire.Params(m); len(got) != n-1 {
			t.Errorf("%T: an empty value leaves %v", m, got)
		}
	}
}
