gcloud alpha compute tpus queued-resources create poe-0 --node-id=poe-0 --accelerator-type=v5p-64 --runtime-version=v2-alpha-tpuv5 --reservation=kept --service-account=runner@my-project.iam.gserviceaccount.com --boot-disk=kms-key=projects/p/locations/us-central1/keyRings/r/cryptoKeys/k --labels=app=adx,adx-job=poe --async --project=my-project --zone=us-west4-a
gcloud compute tpus tpu-vm ssh poe-0 --worker=all '--command=set -euo pipefail
case "$(systemctl is-active adx-poe || true)" in
  active | activating) echo "$HOSTNAME: runs already"; exit 0 ;;
esac
sudo systemctl reset-failed adx-poe 2>/dev/null || true
sudo gcloud auth configure-docker us-docker.pkg.dev --quiet
sudo systemd-run --unit=adx-poe --setenv=HOME=/root '"'"'--property=RestartForceExitStatus=74 75'"'"' --property=RestartSec=30 --property=StartLimitIntervalSec=365d --property=StartLimitBurst=11 --property=TimeoutStopSec=60 /bin/bash -c '"'"'set -euo pipefail
exec docker run --rm --name=adx-poe --privileged --net=host us-docker.pkg.dev/my-project/adx/run:1 launch.parent -- --config=configs/smollm2_poe.py --workdir=gs://bucket/poe --set=limit=64'"'"'' --project=my-project --zone=us-west4-a
